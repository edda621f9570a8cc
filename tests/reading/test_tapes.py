"""Runs that resume from records: the numbers of runs anew, of no more modules than a change reaches, and nothing stays."""

from collections import Counter, OrderedDict, namedtuple
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import torch
from torch import Tensor, nn

from vit_analysis.layers import Branch, Tap
from vit_analysis.reading import replay
from vit_analysis.reading.intervene import Repeated, without_skips
from vit_analysis.reading.replay import Place, Tape, mapped

BLOCKS, WIDTH = 3, 6


class Part(nn.Module):
    """A block whose branch is of two modules in containers, the first of which nothing but the second reads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm2, self.drop = nn.LayerNorm(WIDTH), nn.Dropout()
        self.norm1 = nn.Sequential(nn.LayerNorm(WIDTH), nn.Identity())
        self.first = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])
        self.mix, self.mlp = (nn.Sequential(nn.Identity(), nn.Linear(WIDTH, WIDTH)) for _ in range(2))

    def mixed(self, x: Tensor) -> Tensor:
        return self.mix(self.first[0](self.norm1(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixed(x)
        return x + self.drop(self.mlp(self.norm2(x)))


class Writes(Part):
    """The same, which writes into what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.mixed(x)
        x += self.drop(self.mlp(self.norm2(x)))
        return x


class Relu(Part):
    """The same, whose stream goes through an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x + self.mixed(x))
        return x + self.drop(self.mlp(self.norm2(x)))


class Net(nn.Module):
    """A stem, blocks in two containers, a head; the stem's output and a number go on beside them."""

    def __init__(self, kind: type[Part]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.ModuleDict({"conv": nn.Linear(4, WIDTH), "norm": nn.LayerNorm(WIDTH)})
        self.blocks = nn.ModuleList([kind(), nn.Sequential(kind(), nn.Sequential(kind()))])
        self.head, self.odd = nn.Linear(WIDTH, 2), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem["norm"](self.stem["conv"](x))
        x = self.blocks[1](self.blocks[0](stem * 1) + 0.1 * stem)
        return self.head(self.odd(x) + stem)


PATHS = ("blocks.0", "blocks.1.0", "blocks.1.1.0")


def branches(path: str, *, relu: bool) -> list[Branch]:
    """The two branches of a block."""
    joined = Tap(f"{path}.act") if relu else Tap(f"{path}.norm2", "in")
    first = Branch(
        path,
        "attention",
        Tap(f"{path}.norm1.0", "in"),
        Tap(f"{path}.mix.1"),
        joined,
        f"{path}.act" if relu else None,
    )
    return [first, Branch(path, "mlp", Tap(f"{path}.norm2", "in"), Tap(f"{path}.mlp"), Tap(path))]


@contextmanager
def counted(net: Net) -> Iterator[Counter[str]]:
    """How often each module computes, and how often its hooks run."""
    count: Counter[str] = Counter()
    with ExitStack() as stack:
        for path, module in net.named_modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.forward = lambda x, own=module.forward, path=path: count.update([path]) or own(x)
                stack.callback(vars(module).pop, "forward")
            hook = module.register_forward_hook(lambda *_, path=path: count.update([f"hook {path}"]))
            stack.callback(hook.remove)
        yield count


def changes(relu: bool):
    def of(path: str):
        return lambda model: without_skips(model, branches(path, relu=relu))

    @contextmanager
    def nothing(_: nn.Module):
        yield

    return [nothing, *map(of, PATHS)]


ALL = replay.MOST
SOME = 3 * 2 * 5 * WIDTH * 4  # bytes of three outputs


@pytest.mark.parametrize(
    ("kind", "most"),
    [(Part, ALL), (Writes, ALL), (Relu, ALL), (Writes, 0), (Writes, SOME), (Relu, SOME)],
)
@pytest.mark.parametrize("within", [True, False])
def test_runs_that_resume_are_runs_anew_and_run_what_a_change_reaches(kind, within, most, monkeypatch):
    monkeypatch.setattr(replay, "MOST", most)
    relu = kind is Relu
    net, x = Net(kind).eval(), torch.randn(2, 5, 4)
    expected, seen = [], []
    for change in changes(relu):
        with torch.no_grad(), change(net):
            expected.append(net(x))
    repeated = Repeated(net, changes(relu))
    blocks = [net.get_submodule(path) for path in PATHS]
    places = [
        Place(block, branches(path, relu=relu) if within else ())
        for path, block in zip(PATHS, blocks, strict=True)
    ]
    before = {path: dict(vars(module)) for path, module in net.named_modules()}
    repeated.tape = Tape(net, blocks, places)
    handle = net.register_forward_hook(lambda _, __, out: seen.append(out))
    for _ in range(2):  # batch after batch
        seen.clear()
        with counted(net) as count, torch.no_grad():
            repeated(x)
        for own, wanted in zip(seen, expected, strict=True):
            torch.testing.assert_close(own, wanted, rtol=0, atol=0)
        assert not repeated.unchanged
        for path in ("stem.conv", "blocks.1.1.0.mix", "head", "blocks.0", "odd"):
            assert count[f"hook {path}"] == 1 + BLOCKS, path  # hooks run as ever
        assert count["head"] == 1 + BLOCKS
        if most == ALL:
            assert count["stem.conv"] == count["stem.norm"] == 1
            for number, path in enumerate(PATHS):
                runs = 1 + number + (not within)
                assert (count[f"{path}.mix.1"], count[f"{path}.first.0"]) == (runs, runs)
                assert count[f"{path}.mlp.1"] == 1 + number + 1
        if most == 0:
            assert count["stem.conv"] == 1 + BLOCKS
    handle.remove()
    for path, module in net.named_modules():
        own = vars(module)
        assert own.keys() == before[path].keys()
        assert "forward" not in own


def test_up_to_a_change_all_is_unchanged():
    net, x = Net(Part).eval(), torch.randn(2, 5, 4)
    blocks = [net.get_submodule(path) for path in PATHS]
    tape = Tape(
        net,
        blocks,
        [Place(block, branches(path, relu=False)) for path, block in zip(PATHS, blocks, strict=True)],
    )
    assert not tape.unchanged
    told: list[bool] = []
    for block in blocks:
        block.register_forward_hook(lambda *_: told.append(tape.unchanged))
    with torch.no_grad():
        with tape.recording():
            net(x)
        assert told == [False] * 3
        for number in range(BLOCKS):
            told.clear()
            with tape.replaying(number):
                net(x)
            # The last record of all is that of the branch of the block that changes.
            assert told == [True] * number + [False] * (BLOCKS - number)
            assert not tape.unchanged


@pytest.mark.parametrize("most", [0, 100, 400, 1000, ALL])
def test_records_are_no_more_than_there_is_room_for_and_one_block(most, monkeypatch):
    """Of each output 240 bytes; of one block at most the stem's, its own and what is inside of it."""
    monkeypatch.setattr(replay, "MOST", most)
    net = Net(Part).eval()
    blocks = [net.get_submodule(path) for path in PATHS]
    tape = Tape(
        net,
        blocks,
        [Place(block, branches(path, relu=False)) for path, block in zip(PATHS, blocks, strict=True)],
    )
    with torch.no_grad(), tape.recording():
        net(torch.randn(2, 5, 4))
    kept = {}
    for line in tape._lines.values():
        for entry in line:
            kept[id(entry.value)] = entry.value.nbytes
    whole = sum(kept.values())
    assert whole <= most + 4 * 240 if most else whole == 0
    assert (whole > 0) == (most > 0)
    tape.clear()
    assert tape._lines == {}


@pytest.mark.parametrize("recording", [True, False])
def test_what_was_there_before_comes_back_after_an_error_too(recording):
    net = Net(Part).eval()
    blocks = [net.get_submodule(path) for path in PATHS]
    tape = Tape(net, blocks, [Place(block) for block in blocks])
    mine = blocks[0].forward = lambda x: Part.forward(blocks[0], x)  # as wrappers leave it
    with torch.no_grad():
        if not recording:
            with tape.recording():
                net(torch.randn(2, 5, 4))
        with suppress(ZeroDivisionError), tape.recording() if recording else tape.replaying(1):
            assert "forward" in vars(blocks[0])
            raise ZeroDivisionError
    assert blocks[0].forward is mine
    assert not any("forward" in vars(module) for module in net.modules() if module is not blocks[0])
    assert not tape.unchanged


def test_records_are_of_plain_containers_alone():
    one = torch.ones(2)
    plain = {"a": [one, None, True, 3, 0.5, "word", (one, {"b": one})]}
    found = mapped(plain, lambda own: own + 1)
    assert [*found["a"][1:6]] == [None, True, 3, 0.5, "word"]
    for own in (found["a"][0], found["a"][6][0], found["a"][6][1]["b"]):
        assert torch.equal(own, one + 1)
    assert type(found["a"]) is list
    assert type(found["a"][6]) is tuple
    for odd in (object(), OrderedDict(a=one), namedtuple("Pair", "a")(one), {one}, b"bytes"):
        with pytest.raises(TypeError, match=f"what a {type(odd).__name__} holds is not known"):
            mapped([odd], torch.clone)
