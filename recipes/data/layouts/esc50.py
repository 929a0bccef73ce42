"""ESC-50's layout: five-second sounds, a table of their classes, and five official folds."""

import csv
from pathlib import Path

from recipes.data.encoding import read_lines
from recipes.data.layouts.listed import Row, folder_of, present, whole

TABLE = "meta/esc50.csv"
COLUMNS = ("filename", "fold", "target", "category", "src_file")


def read(root: Path) -> tuple[list[str], list[Row]]:
    """Reads a folder in ESC-50's layout; see `recipes.data.labels.Layout`.

    Split n tests on fold n and trains on the others.

    Args:
        root: the folder with `meta/esc50.csv` and `audio/`, in it or in a folder in it (`ESC-50-master`).
    Raises:
        FileNotFoundError: no table, or not one of the sounds.
        ValueError: a line of another form; says which file and line.
    """
    folder = folder_of(root, TABLE) or root
    path = folder / TABLE
    names: dict[int, str] = {}
    rows: dict[str, Row] = {}
    table = csv.DictReader(text for _, text in read_lines(path))
    if missing := [name for name in COLUMNS if name not in (table.fieldnames or ())]:
        raise ValueError(f"{path}, line 1: expected the columns {', '.join(COLUMNS)}; there is no {', '.join(missing)}")
    for fields in table:
        file, fold, target, category, source = (fields[name] or "" for name in COLUMNS)
        if not (file and category and fold.isdecimal() and target.isdecimal()):
            raise ValueError(
                f"{path}, line {table.line_num}: expected a file, the numbers of its fold and class, and the class; "
                f"found {file!r}, {fold!r}, {target!r}, {category!r}"
            )
        if names.setdefault(int(target), category) != category:
            raise ValueError(
                f"{path}, line {table.line_num}: class {target} is {category!r} here, {names[int(target)]!r} above"
            )
        about = {"labels": [category], "parts": {fold: "test"}, "source": source}
        rows[file] = {"id": Path(file).stem, **whole(folder / "audio" / file), **about}
    folds = dict.fromkeys(fold for row in rows.values() for fold in row["parts"])
    for row in rows.values():
        row["parts"] = dict.fromkeys(folds, "train") | row["parts"]
    return [names[number] for number in sorted(names)], present(root, rows, TABLE)
