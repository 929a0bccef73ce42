"""What is remembered of a graph serves other batches and other parameters, and is forgotten in the right order."""

import pytest
import torch
import torch.nn.functional as F

import harmony
from harmony.engines import scratch
from harmony.engines.tape import engine as tape
from harmony.engines.tape import topology
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords

EXACT = 1e-9
SMOOTH = harmony.chain(harmony.realign.normalized)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Nothing is known at the start."""
    monkeypatch.setattr(topology, "_KNOWN", type(topology._KNOWN)())


@pytest.fixture
def derived(monkeypatch):
    """Numbers of the graphs whose tensors were derived."""
    calls = []
    original = tape.param_tensors
    monkeypatch.setattr(tape, "param_tensors", lambda *args: (calls.append(1), original(*args))[1])
    return calls


def exact(case, **options):
    truth = oracle.per_sample_gradients(*case, attribution="activation")
    result = harmony.gram_vjp(*case, **keywords(method="tape", verify="never", **options))
    assert oracle.relative_error(result.gram, oracle.gram_blocks(truth)) < EXACT
    weights = torch.rand(result.gram.shape[:2], dtype=torch.float64)
    expected = {name: torch.einsum("bk,bk...->...", weights, g) for name, g in truth.items()}
    assert oracle.error_per_parameter(result.pullback(weights), expected) < EXACT


@pytest.mark.filterwarnings("ignore:.*has no closed form:UserWarning")
@pytest.mark.parametrize("update", ["kept", "tape"])
@pytest.mark.parametrize("name", zoo.CASES)
def test_a_remembered_graph_serves_other_parameters_and_batches(name, update, derived):
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        exact(zoo.CASES[name](), update=update)
    assert len(derived) in (1, 3)  # three times where the values of a batch tell the samples apart


def tokens(length, size=4):
    """Attention over a text of some length."""
    params = {name: torch.randn(6, 6, dtype=torch.float64) for name in ("q", "k", "v", "o")}

    def encode(p, x):
        q, k, v = (x @ p[name] for name in ("q", "k", "v"))
        return (F.scaled_dot_product_attention(q, k, v) @ p["o"]).mean(1)

    return zoo.Case(encode, zoo.supervised, params, torch.randn(size, length, 6, dtype=torch.float64))


def test_padded_lengths_that_take_turns_are_each_derived_once(derived):
    for length in [*range(1, 71)] * 2:
        case = tokens(length)
        harmony.gram_vjp(*case, engine=harmony.Engine("tape", verify="never"))
    assert len(derived) == 70
    exact(tokens(70))
    assert len(derived) == 70


def test_a_new_length_costs_no_backward_call(monkeypatch):
    calls = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    counts = []
    for length in (5, 5, 7):
        calls.clear()
        harmony.gram_vjp(*tokens(length), engine=harmony.Engine("tape", verify="never"))
        counts.append(len(calls))
    assert counts[2] == counts[0] <= counts[1] + 1  # the uses of parameters are read in a pass of nothing


def test_the_graph_used_least_recently_is_forgotten(monkeypatch, derived):
    monkeypatch.setattr(topology, "REMEMBERED", 2)
    for length in (1, 2, 1, 3, 1, 2):
        harmony.gram_vjp(*tokens(length), engine=harmony.Engine("tape", verify="never"))
    assert len(derived) == 4  # 1, 2, 3, and 2 once more


def test_options_dtypes_and_which_parameter_is_which_tell_graphs_apart(derived):
    def encode(p, x):
        return torch.tanh(x @ p["a"]) @ p["b"]

    params = {"a": torch.randn(4, 4, dtype=torch.float64), "b": torch.randn(4, 4, dtype=torch.float64)}
    x = torch.randn(3, 4, dtype=torch.float64)
    exact(zoo.Case(encode, zoo.supervised, params, x))
    exact(zoo.Case(lambda p, x: torch.tanh(x @ p["b"]) @ p["a"], zoo.supervised, params, x))
    exact(zoo.Case(lambda p, x: torch.tanh(x @ p["a"]) @ p["a"], zoo.supervised, {"a": params["a"]}, x))
    exact(zoo.Case(lambda p, x: 2 * torch.tanh(x @ p["a"]) @ p["b"], zoo.supervised, params, x))
    exact(zoo.Case(lambda p, x: torch.sub(x, p["a"][0], alpha=2) @ p["b"], zoo.supervised, params, x))
    exact(zoo.Case(lambda p, x: torch.sub(x, p["a"][0], alpha=3) @ p["b"], zoo.supervised, params, x))
    assert len(derived) == 6


def test_a_step_uses_the_memory_of_the_step_before_and_gives_it_back(monkeypatch):
    made = []
    original = scratch.Scratch.__init__
    monkeypatch.setattr(scratch.Scratch, "__init__", lambda self, n: (made.append(n), original(self, n))[1])
    case = tokens(5)
    step = harmony.harmonized_grad(case.encode, case.losses, SMOOTH, engine=harmony.Engine(memory=12345))
    for _ in range(3):
        step(case.params, case.batch, SMOOTH.init())
    assert made.count(12345) == 1
    harmony.release_memory()
    step(case.params, case.batch, SMOOTH.init())
    assert made.count(12345) == 2


def test_a_rule_that_computes_gradients_of_its_own_disturbs_nothing():
    case, other = tokens(5), tokens(3)

    @harmony.samplewise
    def nested(gram):
        assert harmony.gram_vjp(*other).gram.isfinite().all()
        return harmony.realign.normalized(gram)

    plain, _, _ = harmony.harmonized_grad(case.encode, case.losses, SMOOTH)(case.params, case.batch, SMOOTH.init())
    rule = harmony.chain(nested)
    grads, _, _ = harmony.harmonized_grad(case.encode, case.losses, rule)(case.params, case.batch, rule.init())
    assert all(torch.equal(grads[name], plain[name]) for name in plain)
