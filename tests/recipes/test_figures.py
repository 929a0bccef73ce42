"""The figures: all files are written, none is blank, and what is drawn is what the weights make of the gradients."""

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

import harmony
from recipes.figures import realign
from recipes.figures.command import main
from recipes.figures.realign import METHODS, PANELS, STRONG

LARGEST = 60_000  # bytes
SCALE_OF = {"½": 0.5, "¼": 0.25, "⅛": 0.125}


def test_every_method_that_is_not_random_is_drawn():
    assert set(METHODS) == set(harmony.realign.__all__) - {"random", "pcgrad_random"}


@pytest.mark.slow
def test_the_command_writes_small_pictures_that_are_not_blank(tmp_path, capsys):
    assert main(["realign", f"out={tmp_path / 'realign'}"]) == 0
    files = sorted((tmp_path / "realign").iterdir())
    assert {f.name for f in files} == {f"{name}.png" for name in METHODS} | {"overview.png"}
    out = capsys.readouterr().out
    for file in files:
        assert str(file) in out
        assert file.stat().st_size < LARGEST
        with Image.open(file) as picture:
            picture.verify()
        with Image.open(file) as picture:
            assert picture.format == "PNG" and picture.width == 1400
            colours = picture.convert("RGB").getcolors(1 << 24)
        assert len(colours) > 20
        assert max(colours)[1] == (255, 255, 255)  # the ground is white, on a dark page too


def test_a_command_is_needed(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("realign", "dynamics", "gallery", "label", "detection"))
    assert main(["paint"]) == 2
    assert "expected one of realign" in capsys.readouterr().err


def tip(axes: Axes, name: str) -> torch.Tensor:
    [arrow] = [text for text in axes.texts if text.get_gid() == name]
    assert tuple(arrow.xyann) == (0, 0)
    return torch.tensor(arrow.xy, dtype=torch.float64)


def scale(axes: Axes) -> float:
    notes = " ".join(text.get_text() for text in axes.texts)
    return next((value for sign, value in SCALE_OF.items() if f"drawn at {sign}" in notes), 1.0)


@pytest.mark.parametrize("name", METHODS)
def test_the_update_that_is_drawn_is_the_sum_of_weights_times_gradients(name):
    figure = realign.draw(name)
    assert len(figure.axes) == len(PANELS)
    for axes, panel in zip(figure.axes, PANELS, strict=True):
        g = panel.gradients
        torch.testing.assert_close(torch.stack([tip(axes, "g1"), tip(axes, "g2")]), g)
        weights = METHODS[name].weigh(torch.einsum("kp,lp->kl", g, g)[None])[0]
        expected = [sum(float(weights[k]) * float(g[k, p]) for k in range(2)) for p in range(2)]
        assert (tip(axes, "update") / scale(axes)).tolist() == pytest.approx(expected)
        [total] = [line for line in axes.lines if line.get_gid() == "sum"]
        assert [float(total.get_xdata()[0]), float(total.get_ydata()[0])] == pytest.approx(g.sum(0).tolist())
        inside = axes.get_xlim()[0] < tip(axes, "update")[0] < axes.get_xlim()[1]
        assert inside and tip(axes, "update")[1] < axes.get_ylim()[1]


def test_panels_are_what_they_say():
    for panel in PANELS:
        g = panel.gradients
        assert g.norm(dim=1).tolist() == pytest.approx(list(panel.norms))
        cosine = float(g[0] @ g[1] / (g[0].norm() * g[1].norm()))
        assert cosine == pytest.approx(float(torch.tensor(panel.degrees).deg2rad().cos()), abs=1e-6)


@pytest.mark.parametrize("panel", PANELS)
def test_the_edges_of_the_cone_are_orthogonal_to_the_gradients_and_it_conflicts_with_neither(panel):
    axes = realign.draw("summed").axes[PANELS.index(panel)]
    [cone] = axes.patches
    origin, *edges = torch.from_numpy(cone.get_xy()[:3]).unbind(0)
    products = torch.stack(edges) @ panel.gradients.T
    assert origin.tolist() == [0, 0]
    assert (products > -1e-9).all()
    assert products.abs().amin(1).tolist() == pytest.approx([0, 0], abs=1e-9)


def test_a_picture_says_where_it_is_not_to_scale():
    axes = realign.draw("fairgrad").axes[PANELS.index(STRONG)]
    assert scale(axes) == 0.25
    assert any("own scale: |update| 2.49" in text.get_text() for text in axes.texts)
    assert scale(realign.draw("pcgrad").axes[0]) == 1.0
    titled = {axes.get_title(): axes for axes in realign.overview().axes}
    assert set(titled) >= {method.title for method in METHODS.values()}
    assert scale(titled["nash_mtl"]) == 0.5
