"""Modules in ordinary loops: their own parameters, hooks, buffers, and what an ordinary loop would do with them."""

import functools
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import harmony
from tests import zoo
from tests.harmony.options import keywords


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def losses(f):
    return {"first": f[:, 0] ** 2, "others": f[:, 1:].sin().sum(1)}


def plain(module, x, objective=losses):
    """The gradient of an ordinary loop, {name: gradient}."""
    module.zero_grad()
    sum(term.mean() for term in objective(module(x)).values()).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_plain(module, x, tolerance=1e-10, **options):
    """With weights of one, the harmonized loop is the ordinary one, step after step."""
    expected = plain(module, x)
    for _ in range(3):
        module.zero_grad()
        harmony.backward(module, x, losses, harmony.chain(), **keywords(**options))
        for name, p in module.named_parameters():
            scale = expected[name].abs().max() if name in expected else 1
            assert (p.grad - expected.get(name, 0)).abs().max() <= tolerance * scale, name
    assert all(isinstance(p, nn.Parameter) for p in module.parameters())


class Twice(nn.Module):
    """One submodule, registered under two names, as Performer does it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.again = self.first
        self.deeper = nn.ModuleList([self.first, nn.Linear(4, 3)])

    def forward(self, x):
        return self.deeper[1](self.again(self.first(x)))


@pytest.mark.parametrize("method", ["auto", "tape", "vmap", "loop"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_submodule_under_two_names_keeps_its_parameters(method, chunk_size):
    module = Twice().double()
    names = list(dict(module.named_parameters()))
    assert_plain(module, zoo.randn(5, 4), method=method, chunk_size=chunk_size)
    assert list(dict(module.named_parameters())) == names and module.first[0] is module.again[0]


@pytest.mark.parametrize("method", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_use_the_parameters_they_are_given(kind, method):
    layer = kind(4, 3, num_layers=2, batch_first=True).double()
    module = nn.Sequential(layer, zoo.Apply(lambda out: out[0].sum(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_plain(module, zoo.randn(4, 5, 4), method=method)


class Adjoint(torch.autograd.Function):
    """Takes a module's parameters as inputs, and runs the module again in its backward, as adjoint methods do."""

    @staticmethod
    def forward(ctx, module, x, *params):
        ctx.module = module
        ctx.save_for_backward(x)
        ctx.params = params
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            grads = torch.autograd.grad(ctx.module(x), (x, *ctx.params), grad)
        return None, *grads


class WithAdjoint(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
        self.outer = nn.Linear(4, 4)

    def forward(self, x):
        return Adjoint.apply(self.inner, self.outer(x), *self.inner.parameters())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_function_that_runs_its_module_again_finds_its_parameters():
    assert_plain(WithAdjoint().double(), zoo.randn(5, 4))


class Reversible(torch.autograd.Function):
    """Runs its module again in the backward and adds to ``.grad`` there: no path leads to the parameters."""

    @staticmethod
    def forward(ctx, module, x):
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return x + module(x)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            torch.autograd.backward(x + ctx.module(x), grad)
        return None, x.grad


class WithReversible(WithAdjoint):
    def forward(self, x):
        return Reversible.apply(self.inner, self.outer(x))


class WithReentrantCheckpoint(WithAdjoint):
    def forward(self, x):
        return checkpoint(self.inner, self.outer(x), use_reentrant=True)


@pytest.mark.parametrize("module", [WithReversible(), WithReentrantCheckpoint()])
@pytest.mark.parametrize("options", [{}, {"method": "loop"}, {"space": "features"}, {"attribution": "loss"}])
def test_parameters_without_a_path_are_no_zero_gradient(module, options):
    before = [p.grad for p in module.parameters()]
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"'inner\.\d\.(weight|bias)' inside of"):
        warnings.simplefilter("ignore")
        harmony.backward(module, torch.randn(5, 4), losses, harmony.chain(), **keywords(**options))
    assert [p.grad for p in module.parameters()] == before


class Teacher(nn.Module):
    """What is used without a gradient, or not at all, is nobody's mistake."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher, self.unused = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher(x)
        self.unused(x)
        return self.student(x) * target


def test_a_teacher_without_a_gradient_is_allowed():
    assert_plain(Teacher().double(), zoo.randn(5, 4))


class Cached(nn.Module):
    """Keeps what it makes of its parameters, as some attention biases are kept in eval mode."""

    def __init__(self):
        super().__init__()
        self.table, self.linear, self.cache = nn.Parameter(torch.randn(3)), nn.Linear(4, 3), None

    def forward(self, x):
        if self.cache is None:
            self.cache = self.table.exp()
        return self.linear(x) * self.cache


def test_tensors_kept_from_an_earlier_call_are_found():
    module = Cached().double()
    params = {name: p.detach() for name, p in module.named_parameters()}
    encode = lambda p, x: torch.func.functional_call(module, p, (x,))  # noqa: E731
    harmony.gram_vjp(encode, losses, params, zoo.randn(5, 4))
    for method in ("tape", "loop"):
        with pytest.raises(ValueError, match="kept from an earlier call"):
            harmony.gram_vjp(encode, losses, params, zoo.randn(5, 4), engine=harmony.Engine(method=method))


def test_inputs_that_ask_for_a_gradient_are_inputs():
    """Some feature extractors set ``requires_grad`` on their input, for reentrant checkpoints."""

    def forward(m, x):
        x = x[:, None]
        x.requires_grad_()
        return m(x)[:, 0]

    module, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), zoo.randn(5, 4)
    expected = plain(module, x)
    module.zero_grad()
    harmony.backward(module, x, losses, harmony.chain(), forward=forward)
    torch.testing.assert_close({name: p.grad for name, p in module.named_parameters()}, expected)
    params = {name: p.detach() for name, p in module.named_parameters()}
    encode = lambda p, x: forward(lambda x: torch.func.functional_call(module, p, (x,)), x)  # noqa: E731
    assert not [row for row in harmony.plan(encode, losses, params, x).rows if row.choice == "opaque"]


@pytest.mark.parametrize(
    "view", [lambda w: w.t(), lambda w: w.mT.contiguous().clone(), lambda w: w.view(-1).view(4, 4)]
)
def test_a_hook_on_a_view_of_a_parameter_is_not_passed_by(view):
    weight = nn.Parameter(torch.randn(4, 4))
    module, x = nn.ParameterList([weight]), torch.randn(5, 4)
    mask = torch.rand(4, 4) > 0.5

    def forward(m, x):
        w = view(m[0])
        if w.requires_grad:
            w.register_hook(lambda grad: grad * mask)
        return x @ w

    with pytest.warns(UserWarning, match="registers a hook on a tensor"):
        harmony.backward(module, x, losses, harmony.chain(), forward=forward)
    harmonized, weight.grad = weight.grad, None
    sum(term.mean() for term in losses(forward(module, x)).values()).backward()
    torch.testing.assert_close(harmonized, weight.grad)


def test_sparse_bags_of_words():
    module = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 3)).double()
    dense = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3)).double()
    dense.load_state_dict(module.state_dict())
    x = torch.randint(9, (5, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        info, _ = harmony.backward(module, x, losses, harmony.realign.pcgrad)
        expected, _ = harmony.backward(dense, x, losses, harmony.realign.pcgrad)
    torch.testing.assert_close(info.gram, expected.gram)
    torch.testing.assert_close([p.grad for p in module.parameters()], [p.grad for p in dense.parameters()])


# Side channels


class Balanced(nn.Module):
    """Leaves an auxiliary loss on itself, as mixtures of experts and quantisers do."""

    def __init__(self):
        super().__init__()
        self.router, self.out = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        gates = self.router(x).softmax(-1)
        self.aux = gates.var(1)
        return self.out(gates)


@pytest.mark.parametrize(
    "options", [{}, {"method": "loop"}, {"space": "features"}, {"attribution": "loss"}, {"chunk_size": 2}]
)
def test_losses_that_read_what_forward_left_behind_are_refused(options):
    module = Balanced()
    objective = lambda f: losses(f) | {"balance": module.aux}  # noqa: E731
    with pytest.raises(ValueError, match=r"losses uses a trainable parameter|got \(1,\)"):
        harmony.backward(module, torch.randn(5, 4), objective, harmony.chain(), **keywords(**options))
    params = {name: p.detach() for name, p in module.named_parameters()}
    encode = lambda p, x: torch.func.functional_call(module, p, (x,))  # noqa: E731
    with pytest.raises(ValueError, match=r"losses uses a trainable tensor|got \(1,\)"):
        harmony.gram_vjp(encode, objective, params, torch.randn(5, 4), **keywords(**options))


def test_the_remedy_works():
    module = Balanced().double()
    forward = lambda m, x: {"f": m(x), "aux": m.aux}  # noqa: E731
    objective = lambda f: losses(f["f"]) | {"balance": f["aux"]}  # noqa: E731
    x = zoo.randn(5, 4)
    sum(term.mean() for term in objective(forward(module, x)).values()).backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    harmony.backward(module, x, objective, harmony.chain(), forward=forward)
    torch.testing.assert_close([p.grad for p in module.parameters()], expected)


@pytest.mark.parametrize("join", [lambda f, w: torch.cat([f, w.expand(len(f), -1)], 1), lambda f, w: f + w.sum(),
                                  lambda f, w: torch.stack([f, w.expand_as(f)]).sum(0)])  # fmt: skip
@pytest.mark.parametrize("method", ["auto", "vmap"])
def test_stray_parameters_are_found_wherever_they_are(join, method):
    module, stray = nn.Linear(4, 3), nn.Parameter(torch.randn(3))
    with pytest.raises(ValueError, match="forward uses a trainable parameter of shape"):
        forward = lambda m, x: join(m(x), stray)  # noqa: E731
        harmony.backward(
            module, torch.randn(5, 4), losses, harmony.chain(), forward=forward, engine=harmony.Engine(method=method)
        )
    with pytest.raises(ValueError, match="losses uses a trainable parameter of shape"):
        objective = lambda f: losses(join(f, stray))  # noqa: E731
        harmony.backward(module, torch.randn(5, 4), objective, harmony.chain(), engine=harmony.Engine(method=method))


# Hooks


def test_hooks_on_parameters_see_the_gradient_of_the_step_once():
    module, heads, x = nn.Linear(4, 3).double(), nn.Linear(3, 2).double(), zoo.randn(5, 4)
    wrapped = nn.Module()
    wrapped.heads = heads
    wrapped.forward = lambda f: losses(heads(f))
    seen, updated = [], []
    for p in (module.weight, heads.weight):
        p.register_hook(lambda grad: seen.append(grad.clone()))
        p.register_post_accumulate_grad_hook(lambda p: updated.append(p.grad.clone()))
    halved = module.bias.register_hook(lambda grad: grad / 2)
    harmony.backward(module, x, wrapped, harmony.chain())
    assert len(seen) == len(updated) == 2
    halved.remove()
    got = module.bias.grad.clone()
    for p in (*module.parameters(), *heads.parameters()):
        p.grad = None
    harmony.backward(module, x, wrapped, harmony.chain())
    assert len(seen) == len(updated) == 4
    torch.testing.assert_close(got, module.bias.grad / 2)
    torch.testing.assert_close(sorted(g.shape for g in seen[2:]), sorted([heads.weight.shape, module.weight.shape]))
    for p in (*module.parameters(), *heads.parameters()):
        p.grad = None
    sum(term.mean() for term in wrapped(module(x)).values()).backward()
    torch.testing.assert_close(sorted(seen[4:], key=len), sorted(seen[2:4], key=len))
    torch.testing.assert_close(sorted(updated[4:], key=len), sorted(updated[2:4], key=len))


def test_hooks_of_modules_and_counters_see_one_pass():
    module, calls = nn.Sequential(nn.Linear(4, 3), nn.InstanceNorm1d(1, track_running_stats=True)), []
    module[0].register_forward_hook(lambda m, args, out: calls.append(args[0].shape))
    module[0].register_full_backward_hook(lambda m, gi, go: calls.append(go[0].isfinite().all().item()))
    forward = lambda m, x: m(x[:, None])[:, 0]  # noqa: E731
    copy = nn.InstanceNorm1d(1, track_running_stats=True)
    copy(module[0](torch.ones(5, 1, 4)))
    calls.clear()
    harmony.backward(module, torch.ones(5, 4), losses, harmony.chain(), forward=forward)
    assert [c for c in calls if isinstance(c, torch.Size)] == [torch.Size([5, 1, 4])]
    assert all(c is True for c in calls if not isinstance(c, torch.Size))
    torch.testing.assert_close(module[1].running_mean, copy.running_mean)


# State


class Codebook(nn.Module):
    """A buffer that every pass moves, in place or by assignment, and that the pass depends on."""

    def __init__(self, *, in_place):
        super().__init__()
        self.linear, self.in_place = nn.Linear(4, 3), in_place
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x):
        h = self.linear(x) * self.scale.clone()
        if self.in_place:
            self.scale.mul_(1.5)
        else:
            self.scale = self.scale * 1.5
        return h


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("space", ["parameters", "features"])
def test_buffers_are_the_same_when_a_chunk_is_encoded_again(in_place, space):
    module, x = Codebook(in_place=in_place).double(), zoo.randn(6, 4)
    values, scale = [], module.scale.clone()
    for chunk in x.split(2):
        values.append(F.linear(chunk, module.linear.weight, module.linear.bias) * scale)
        scale = scale * 1.5
    sum(term.mean() for term in losses(torch.cat(values)).values()).backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    harmony.backward(module, x, losses, harmony.chain(), space=space, engine=harmony.Engine(chunk_size=2))
    torch.testing.assert_close([p.grad for p in module.parameters()], expected)
    torch.testing.assert_close(module.scale, scale)


def centred_in_place(p, x):
    x -= 1
    return x @ p["w"]


def test_a_batch_that_is_written_to_is_not_encoded_again():
    params = {"w": zoo.randn(4, 3)}
    x = zoo.randn(6, 4)
    gram = harmony.gram_vjp(centred_in_place, losses, params, x.clone()).gram
    expected = harmony.gram_vjp(lambda p, x: (x - 1) @ p["w"], losses, params, x).gram
    torch.testing.assert_close(gram, expected)
    with pytest.raises(ValueError, match=r"encode writes into batch"):
        harmony.gram_vjp(centred_in_place, losses, params, x.clone(), engine=harmony.Engine(chunk_size=2))
    looped = lambda p, b: torch.stack([row @ p["w"] for row in b["x"].sub_(1)])  # noqa: E731
    with pytest.raises(ValueError, match=r"encode writes into batch\['x'\]"):
        harmony.gram_vjp(looped, losses, params, {"x": x.clone()})


def test_groups_that_do_not_divide_the_batch_are_one_run():
    """One run draws one mask, that of a plain pass."""
    module, x = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3)).double(), zoo.randn(7, 4)
    torch.manual_seed(3)
    expected = plain(module, x)
    torch.manual_seed(3)
    module.zero_grad()
    harmony.backward(module, x, losses, harmony.chain(), group_size=3)
    torch.testing.assert_close({name: p.grad for name, p in module.named_parameters()}, expected)


@pytest.mark.parametrize("options", [{"method": "loop"}, {}])
def test_one_sample_with_channels_last_behind_batch_norm(options):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU()).double().eval()
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.5, 2)
    module = nn.Sequential(net, zoo.Apply(lambda h: h.permute(0, 2, 3, 1).flatten(1, 2).tanh().sum(1)))
    x = zoo.randn(3, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    params = {name: p.detach() for name, p in module.named_parameters()}
    encode = lambda p, x: torch.func.functional_call(module, p, (x,))  # noqa: E731
    expected = harmony.gram_vjp(encode, losses, params, x, engine=harmony.Engine(method="tape"))
    weights = torch.rand(3, 2, dtype=torch.float64)
    result = harmony.gram_vjp(encode, losses, params, x, **keywords(**options))
    torch.testing.assert_close(result.gram, expected.gram)
    torch.testing.assert_close(result.pullback(weights), expected.pullback(weights))
    alone = harmony.gram_vjp(encode, losses, params, x[:1])
    pair = harmony.gram_vjp(encode, losses, params, x[[0, 0]])
    torch.testing.assert_close(alone.gram[0], 4 * pair.gram[0])  # the mean over two halves each


# Processes


def test_a_plain_module_among_several_processes_must_say_who_shares_the_batch(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    module, x = nn.Linear(4, 3), torch.randn(5, 4)
    with pytest.raises(ValueError, match="would drift apart"):
        harmony.backward(module, x, losses, harmony.chain())
    harmony.backward(module, x, losses, harmony.chain(), process_group=None)


# Batch normalisation in training mode


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).tanh())


@pytest.mark.parametrize("options", [
    {"group_size": 6}, {"group_size": 10}, {"space": "features"}, {"space": "features", "attribution": "anchor"},
    {"attribution": "loss"}, {"space": "features", "attribution": "loss"},
])  # fmt: skip
def test_batch_statistics_are_allowed_where_no_sample_is_taken_alone(options):
    module, x = Normalised().double(), zoo.randn(6, 4)
    expected = plain(module, x)
    statistics = module.norm.running_mean.clone()
    module.norm.reset_running_stats()
    module.zero_grad()
    info, _ = harmony.backward(module, x, losses, harmony.chain(), **keywords(**options))
    torch.testing.assert_close({name: p.grad for name, p in module.named_parameters()}, expected)
    torch.testing.assert_close(module.norm.running_mean, statistics)
    assert int(module.norm.num_batches_tracked) == 1
    if "group_size" in options:  # the Gram is that of the gradients of the two losses over the batch
        grads = []
        for name in losses(x):
            module.zero_grad()
            losses(module(x))[name].mean().backward()
            grads.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
        gram = torch.stack(grads) @ torch.stack(grads).mT
        torch.testing.assert_close(info.gram, gram[None])


@pytest.mark.parametrize("options", [
    {}, {"group_size": 5}, {"group_size": 6, "chunk_size": 3}, {"space": "features", "chunk_size": 3},
    {"attribution": "anchor"}, {"attribution": "loss", "chunk_size": 2}, {"group_size": 6, "method": "loop"},
])  # fmt: skip
def test_batch_statistics_are_refused_elsewhere_with_the_ways_out(options):
    with pytest.raises(ValueError, match=r"'norm'.*in training mode.*eval mode.*LayerNorm.*group_size=B.*features"):
        harmony.backward(Normalised(), torch.randn(6, 4), losses, harmony.chain(), **keywords(**options))


def test_words_counted_over_the_batch_follow_the_same_rule():
    module = nn.Sequential(nn.Embedding(7, 3, scale_grad_by_freq=True), zoo.Apply(lambda h: h.sum(1))).double()
    x = torch.randint(7, (6, 4))
    with pytest.raises(ValueError, match="scale_grad_by_freq"):
        harmony.backward(module, x, losses, harmony.chain())
    expected = plain(module, x)
    module.zero_grad()
    harmony.backward(module, x, losses, harmony.chain(), group_size=6)
    torch.testing.assert_close({name: p.grad for name, p in module.named_parameters()}, expected)


# Compiled modules


class Compiled(nn.Module):
    """A part that is compiled by a decorator's way, one by its method, one that is not."""

    def __init__(self):
        super().__init__()
        self.first = torch.compile(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), backend="aot_eager")
        self.second, self.last = nn.Sequential(nn.Linear(5, 5), nn.GELU()), nn.Linear(5, 3)
        self.second.compile(backend="aot_eager")

    def forward(self, x):
        return self.last(self.second(self.first(x)))


@pytest.mark.parametrize("method", ["auto", "tape", "vmap", "loop"])
def test_compiled_modules_are_run_eagerly_on_every_call(method):
    for whole in (False, True):
        module = Compiled().double()
        called = torch.compile(module, backend="aot_eager") if whole else module
        x = zoo.randn(5, 4)
        expected = plain(module, x)
        with pytest.warns(UserWarning, match="The module is compiled"):
            for _ in range(3):
                module.zero_grad()
                harmony.backward(called, x, losses, harmony.chain(), engine=harmony.Engine(method=method))
                torch.testing.assert_close({name: p.grad for name, p in module.named_parameters()}, expected)
        plain(called, x)  # compiled passes still work


def test_compiled_functions_are_run_eagerly():
    layer = torch.compile(lambda x, w: (x @ w).tanh(), backend="aot_eager")
    params, x = {"w": zoo.randn(4, 3), "v": zoo.randn(3, 3)}, zoo.randn(5, 4)
    layer(x, params["w"].requires_grad_()).sum().backward()
    grams = [
        harmony.gram_vjp(lambda p, x, f=f: f(x, p["w"]) @ p["v"], losses, params, x).gram
        for f in (layer, layer, lambda x, w: (x @ w).tanh())
    ]
    torch.testing.assert_close(grams[0], grams[2])
    torch.testing.assert_close(grams[1], grams[2])


def refusing(graph, inputs):
    """A compiler whose code must not be run."""

    def run(*_):
        raise AssertionError("compiled code was run")

    return run


class Distances(nn.Module):
    """An op whose backward is run once for each sample."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        return torch.cdist(x, self.centres)


class Again(nn.Module):
    """A compiled part that activation checkpointing runs again in every backward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 5), Distances(), nn.Linear(5, 3))
        self.run = torch.compile(self.second.forward, backend=refusing)

    def forward(self, x):
        return checkpoint(self.run, self.first(x), use_reentrant=False)


@pytest.mark.parametrize(
    "options", [{}, {"update": "backward"}, {"method": "loop"}, {"chunk_size": 2}, {"verify": "always"}]
)
def test_compiled_parts_that_run_again_in_the_backward_pass_are_run_eagerly_there(options):
    module, x = Again().double(), zoo.randn(5, 4)
    with torch.compiler.set_stance("force_eager"):
        expected = plain(module, x)
    for _ in range(3):
        module.zero_grad()
        harmony.backward(module, x, losses, harmony.chain(), **keywords(**options))
        torch.testing.assert_close({name: p.grad for name, p in module.named_parameters()}, expected)


class Heads(nn.Module):
    """Losses with a part that runs again in the backward pass."""

    def __init__(self, compiler):
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.run = compiler(self.head.forward)

    def forward(self, f):
        return losses(checkpoint(self.run, f, use_reentrant=False))


@pytest.mark.parametrize("attribution", ["activation", "anchor", "loss"])
def test_compiled_losses_are_run_eagerly(attribution):
    """A batched backward pass, which some attributions need, does not go through compiled code."""
    module, x, results = nn.Linear(4, 3).double(), zoo.randn(5, 4), []
    compiler = functools.partial(torch.compile, backend=refusing)
    for part, whole in ((lambda f: f, lambda f: f), (compiler, lambda f: f), (lambda f: f, compiler)):
        torch.manual_seed(0)
        heads = Heads(part).double()
        info, _ = harmony.backward(module, x, whole(heads), harmony.chain(), attribution=attribution)
        results.append([info.gram, *(p.grad for p in heads.parameters())])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_the_warning_of_compiled_modules_points_at_the_line_of_the_user():
    with pytest.warns(UserWarning, match="The module is compiled") as caught:
        harmony.backward(torch.compile(nn.Linear(4, 3)), torch.randn(5, 4), losses, harmony.chain())
    assert [w.filename for w in caught if "is compiled" in str(w.message)] == [__file__]
