"""``measure`` sees what ``backward`` sees, and changes nothing."""

import copy

import pytest
import torch
from torch import nn

import harmony
from tests import zoo
from tests.harmony.options import keywords


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Encoder(nn.Module):
    """Two modalities with a stem each and a trunk that they share."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.video, self.audio = nn.Linear(4, 6), nn.Linear(3, 6)
        self.trunk = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 5))

    def forward(self, video, audio):
        return {"video": self.trunk(self.video(video)), "audio": self.trunk(self.audio(audio))}


class Heads(nn.Module):
    """Losses with parameters and running statistics of their own."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, f):
        video, audio = self.head(f["video"]), self.head(f["audio"])
        nce = harmony.losses.info_nce(video, audio, temperature=self.temperature)
        return {"contrast": nce, "size": f["video"].pow(2).sum(1), "product": (f["video"] * f["audio"]).sum(1).sin()}


def modules(dropout=0.0):
    return Encoder(dropout).double(), Heads().double(), {"video": zoo.randn(6, 4), "audio": zoo.randn(6, 3)}


OPTIONS = {
    "plain": {},
    "vmap": {"method": "vmap"},
    "loop": {"method": "loop"},
    "chunks": {"chunk_size": 2},
    "groups": {"group_size": 2},
    "groups larger than a chunk": {"group_size": 3, "chunk_size": 2},
    "loss": {"attribution": "loss"},
    "anchor in groups": {"attribution": "anchor", "group_size": 2},
    "features": {"space": "features", "feature_leaves": lambda name: True},
    "shared": {"wrt": "shared"},
    "some": {"wrt": lambda name: name.startswith("trunk")},
    "labels": {"labels": lambda name: name.partition(".")[0]},
    "labels of shared": {"wrt": "shared", "labels": lambda name: name.rpartition(".")[2]},
    "scaled": {"loss_scale": torch.tensor(1024.0)},
}


def assert_same_info(info, expected):
    torch.testing.assert_close(info._asdict(), expected._asdict(), rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_the_info_of_a_step_without_realignment(name):
    options = OPTIONS[name]
    encoder, heads, batch = modules()
    trained, trained_heads = copy.deepcopy((encoder, heads))
    info = harmony.measure(encoder, batch, heads, **keywords(**options))
    expected, _ = harmony.backward(trained, batch, trained_heads, harmony.chain(), **keywords(**options))
    assert_same_info(info, expected)
    assert bool((info.weights == 1).all()) and int(info.kept) == len(info.gram)
    assert list(info.gram_of) == list(info.weights_of) == list(expected.gram_of)
    torch.testing.assert_close(heads.state_dict(), trained_heads.state_dict())  # statistics move as in a step


def test_it_takes_a_forward_function_and_losses_without_parameters():
    module, x = nn.Linear(4, 3).double(), zoo.randn(5, 4)
    forward = lambda m, x: m(x).tanh()  # noqa: E731
    info = harmony.measure(module, x, zoo.supervised, forward=forward)
    expected, _ = harmony.backward(module, x, zoo.supervised, harmony.chain(), forward=forward)
    assert_same_info(info, expected)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"method": "vmap"}, {"space": "features"}], ids=str)
def test_parameters_gradients_and_hooks_are_left_alone(options):
    encoder, heads, batch = modules()
    parameters = [*encoder.parameters(), *heads.parameters()]
    calls = []
    for number, p in enumerate(parameters):
        p.grad = zoo.randn(*p.shape) if number % 2 else None
        p.register_hook(lambda grad: calls.append("hook"))
        p.register_post_accumulate_grad_hook(lambda p: calls.append("post"))
    grads = [p.grad for p in parameters]
    copies = copy.deepcopy([(p.detach(), grad) for p, grad in zip(parameters, grads, strict=True)])

    harmony.measure(encoder, batch, heads, **keywords(**options))
    assert not calls
    assert [id(p) for p in (*encoder.parameters(), *heads.parameters())] == [id(p) for p in parameters]
    assert all(p.grad is grad for p, grad in zip(parameters, grads, strict=True))
    torch.testing.assert_close([(p.detach(), p.grad) for p in parameters], copies, rtol=0, atol=0)

    sum(term.mean() for term in heads(encoder(**batch)).values()).backward()
    assert calls.count("hook") == calls.count("post") == len(parameters)  # the hooks are back


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"method": "loop"}], ids=str)
def test_it_draws_the_random_numbers_of_a_step(options):
    encoder, heads, batch = modules(dropout=0.5)
    trained, trained_heads = copy.deepcopy((encoder, heads))
    torch.manual_seed(3)
    info, drawn = harmony.measure(encoder, batch, heads, **keywords(**options)), torch.rand(4)
    torch.manual_seed(3)
    expected, _ = harmony.backward(trained, batch, trained_heads, harmony.chain(), **keywords(**options))
    assert_same_info(info, expected)
    assert torch.equal(torch.rand(4), drawn)


def test_it_measures_where_gradients_are_switched_off():
    encoder, heads, batch = modules()
    expected = harmony.measure(encoder, batch, heads)
    with torch.no_grad():
        info = harmony.measure(encoder, batch, heads)
    assert_same_info(info, expected)


def test_it_refuses_what_backward_refuses():
    module, x = nn.Linear(4, 3), torch.randn(5, 4)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        harmony.measure(nn.Linear(4, 3).requires_grad_(False), x, zoo.supervised)
    with pytest.raises(ValueError, match="losses uses a trainable parameter"):
        harmony.measure(module, x, lambda f: {"stray": f @ nn.Parameter(torch.ones(3))})
    with pytest.raises(TypeError, match="unexpected keyword argument 'ids'"):
        harmony.measure(module, x, zoo.supervised, ids=torch.arange(5))
