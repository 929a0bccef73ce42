"""ESC-50's layout: five-second sounds, a table of their classes, and five official folds."""

from pathlib import Path

from recipes.data.layouts.layout import Labels, Layout, Row, folder_of, present, read_table, row_of_file

TABLE = "meta/esc50.csv"
COLUMNS = ("filename", "fold", "target", "category", "src_file")


def read_esc50(root: Path) -> Labels:
    """Reads `meta/esc50.csv` and `audio/`; split n tests on fold n and trains on the others."""
    folder = folder_of(root, TABLE) or root
    names: dict[int, str] = {}
    rows: dict[str, Row] = {}
    for where, fields in read_table(folder / TABLE, COLUMNS):
        file, fold, target, category, source = (fields[name] for name in COLUMNS)
        if not (file and category and fold.isdecimal() and target.isdecimal()):
            raise ValueError(
                f"{where}: expected a file, the numbers of its fold and class, and the class; "
                f"found {file!r}, {fold!r}, {target!r}, {category!r}"
            )
        if names.setdefault(int(target), category) != category:
            raise ValueError(f"{where}: class {target} is {category!r} here, {names[int(target)]!r} above")
        about = {"id": Path(file).stem, "labels": [category], "parts": {fold: "test"}, "source": source}
        rows[file] = row_of_file(folder / "audio" / file, **about)
    folds = dict.fromkeys(fold for row in rows.values() for fold in row["parts"])
    for row in rows.values():
        row["parts"] = dict.fromkeys(folds, "train") | row["parts"]
    return [names[number] for number in sorted(names)], present(root, rows, TABLE)


LAYOUT = Layout("ESC-50", (TABLE,), lambda root: read_esc50(root)[1], read_esc50, nested=True)
