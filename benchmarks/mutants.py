"""Puts faults into one module, one at a time, and asks which of them its tests do not notice.

    python benchmarks/mutants.py study/numbers
    python benchmarks/mutants.py study/numbers --survivors      # after a test was added: those that were not noticed, again
    python benchmarks/mutants.py --judge 1f3c9a02 equivalent "an index of one element"
    python benchmarks/mutants.py --table

A fault is a small change that still runs: a comparison, operator, extreme, axis, index, constant or default that is another
one, two values of a kind exchanged (low and high, rows and columns, V and R), a step left out. The choice is drawn with a
seed, function by function, so that no function is left out. It is put into a copy of the repository in a temporary folder,
where the tests of `TESTS` run until one fails: the quick ones first. Answers are lines of a file (``--kept``), and what is
answered there for the same source is not tried again. A fault that nothing notices has to be judged by a person:
``equivalent`` (nothing changes that matters), ``tuning`` (a constant that may be another) or ``hole``.

Every trial is a fork of a process that has imported torch and the other libraries, so that it costs what its tests cost. Linux
and macOS only.
"""

import argparse
import ast
import copy
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "vit_analysis"
KEPT = ROOT / "benchmarks" / "mutants.jsonl"
WORDS = ("equivalent", "tuning", "hole")
AXES, INTERVALS, KEYS = "test_axes.py", "test_intervals_of_tables.py", "test_keys_of_settings.py"
# The tests that concern a module, below tests/; a module that is not named has those that are called like it.
TESTS: dict[str, tuple[str, ...]] = {
    "attention_distance": ("test_attention_distance.py", AXES, INTERVALS, KEYS),
    "cka": ("test_cka.py", INTERVALS, AXES, KEYS),
    "frequency": ("test_frequency.py", AXES, INTERVALS, KEYS),
    "images": ("test_images.py", "sources/test_given.py", "sources/test_keys.py", KEYS),
    "layers": ("test_layers_by_hand.py", "test_layers.py"),
    "lesions": ("test_lesions.py", INTERVALS, AXES, KEYS),
    "localization": ("test_localization.py", AXES, INTERVALS, KEYS),
    "models": ("test_models.py", "test_odd_models.py", "test_users_models.py"),
    "probe": ("test_probe.py", "test_probe_bounded.py", AXES, INTERVALS, KEYS),
    "receptive_field": ("test_receptive_field.py", AXES, INTERVALS, KEYS),
    "skip": ("test_skip.py", AXES, INTERVALS, KEYS),
    "soft_nearest_neighbor": ("test_soft_nearest_neighbor.py", INTERVALS, AXES, KEYS),
    "tokens": ("test_token_statistics.py", AXES, INTERVALS, KEYS),
    "reading/briefing": ("reading/test_briefing.py", "reading/test_progress.py", "study/test_casts.py"),
    "reading/gradients": ("reading/test_gradients.py", "test_receptive_field.py", INTERVALS),
    "reading/gridded": ("reading/test_gridded.py", "test_receptive_field.py", AXES, INTERVALS),
    "reading/heads": ("reading/test_heads.py", "test_attention_distance.py", "test_window_attention.py"),
    "reading/intervene": ("reading/test_intervene.py", "reading/test_capture.py", "test_lesions.py"),
    "reading/portions": ("reading/test_portions.py", "test_probe_bounded.py", "test_probe.py"),
    "reading/processes": ("reading/test_company.py", "reading/test_processes.py"),
    "reading/replay": ("reading/test_tapes.py", "reading/test_replay.py"),
    "reading/resume": ("reading/test_resume.py", "reading/test_replay.py", "test_lesions.py"),
    "reading/scales": ("reading/test_scales.py", "test_attention_distance.py", "test_window_attention.py"),
    "reading/stream": ("reading/test_stream.py", "reading/test_measure.py", "test_images.py"),
    "reading/intervals": ("reading/test_intervals.py", INTERVALS),
    "reading/measure": ("reading/test_measure.py", "reading/test_progress.py", "study/test_needs.py", KEYS),
    "reading/state": ("reading/test_state.py", INTERVALS),
    "study/announced": ("study/test_casts.py",),
    "study/claims": ("study/test_claims_by_hand.py", "test_findings.py"),
    "study/controls": ("study/test_controls_by_hand.py", "test_findings.py"),
    "study/differences": ("test_findings.py",),
    "study/draw": ("study/test_drawings_by_hand.py", "study/test_drawings.py", "study/test_report_parts.py"),
    "study/drawings": ("study/test_drawings_by_hand.py", "study/test_drawings.py"),
    "study/evidence": ("study/test_evidence.py", "study/test_estimates.py"),
    "study/estimates": ("study/test_estimates.py", "study/test_evidence.py"),
    "study/needs": ("study/test_drawings_by_hand.py", "study/test_needs.py"),
    "study/numbers": ("study/test_claims_by_hand.py", "study/test_numbers.py"),
    "study/loaded": ("study/test_plans_by_hand.py", "study/test_passes.py"),
    "study/passes": ("study/test_plans_by_hand.py", "study/test_passes.py"),
    "study/plans": ("study/test_plans_by_hand.py", "study/test_passes.py"),
    "study/rules": ("study/test_rules_in_every_order.py", "study/test_rules.py"),
    "tensors/attention": ("test_window_attention.py", "test_attention_distance.py"),
    "tensors/grams": ("tensors/test_grams.py", "tensors/test_selections_by_hand.py"),
    "tensors/precision": ("reading/test_rounding.py", "test_users_models.py"),
    "tensors/tokens": ("tensors/test_selections_by_hand.py", "tensors/test_tokens.py", AXES, "test_probe.py"),
}

# What tests import, but for the package itself: imported once for all trials.
LIBRARIES = (
    *("torch", "timm", "torchvision", "pandas", "scipy.stats", "matplotlib.pyplot", "pyarrow.parquet"),
    *("beartype", "einops", "hypothesis", "jaxtyping", "tyro"),
)

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    **{ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.Lt)},
    **{ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,)},
    **{ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,)},
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult},
}
_FUNCTIONS = (
    *(("min", "max"), ("amin", "amax"), ("nanmin", "nanmax"), ("minimum", "maximum"), ("argmin", "argmax")),
    *(("sum", "mean"), ("nansum", "nanmean"), ("median", "mean"), ("any", "all"), ("floor", "ceil"), ("round", "int")),
)  # fmt: skip
_VALUES = (
    *(("low", "high"), ("rows", "columns"), ("row", "col"), ("row", "column"), ("vit", "cnn"), ("skip", "long")),
    *(("height", "width"), ("token", "patch"), ("start", "end"), ("inside", "across"), ("top", "left")),
    *(("distance_px", "uniform_px"), ("value", "low"), ("cls", "spatial"), ("first", "last"), ("few", "many")),
    *(("layer", "other_layer"), ("depth", "other_depth"), ("model", "other_model"), ("gap", "vit"), ("loss", "chance")),
)  # fmt: skip
EXCHANGED: dict[str, str] = {
    one: other for pair in reversed(_FUNCTIONS + _VALUES) for one, other in (pair, pair[::-1])
}
# Calls without which what they are called on, or given first, goes on as it was.
STEPS = (
    *(
        "sqrt",
        "abs",
        "square",
        "log",
        "exp",
        "log2",
        "clamp",
        "nan_to_num",
        "clone",
        "flip",
        "sort",
        "sorted",
    ),
    *(
        "reversed",
        "transpose",
        "permute",
        "diff",
        "cumsum",
        "round",
        "max",
        "min",
        "normalize",
        "dropna",
        "fillna",
    ),
)


@dataclass(frozen=True)
class Mutant:
    """One fault: bytes of the source from ``start`` to ``end`` that are to be others."""

    module: str
    function: str
    line: int
    kind: str
    before: str
    after: str
    start: int
    end: int
    source: str
    """The beginning of the digest of the whole source."""

    @property
    def id(self) -> str:
        """Eight hexadecimal digits by which the fault is known."""
        return hashlib.sha256(f"{self.module} {self.source} {self.start} {self.after}".encode()).hexdigest()[
            :8
        ]

    def applied(self, source: bytes) -> bytes:
        """The source with the fault."""
        return source[: self.start] + self.after.encode() + source[self.end :]


def mutants(source: bytes, module: str) -> list[Mutant]:
    """All faults that can be put into a module, in the order of its lines."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    digest, found = hashlib.sha256(source).hexdigest()[:8], {}
    for function, node, kind, after in _changes(ast.parse(source)):
        start, end = (
            lines[node.lineno - 1] + node.col_offset,
            lines[node.end_lineno - 1] + node.end_col_offset,
        )
        before = source[start:end].decode()
        one = Mutant(module, function, node.lineno, kind, before, after, start, end, digest)
        if after.strip("()") != before.strip("()"):
            found.setdefault(one.id, one)
    return sorted(found.values(), key=lambda one: (one.start, one.after))


def _changes(tree: ast.Module) -> Iterator[tuple[str, Any, str, str]]:
    """Yield the function, the node, the kind of the fault and the text in the node's place."""
    waiting: list[tuple[ast.AST, str, set[str]]] = [(tree, "", _words(tree))]
    while waiting:
        node, function, known = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function, known = f"{function}.{node.name}".lstrip("."), _words(node)
        if isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            changed = _of_number(node) if function or not isinstance(node, ast.Constant) else []
            for kind, other in [*changed, *_of_expression(node), *_renamed(node, known)]:
                yield (
                    function,
                    node,
                    kind,
                    f"({ast.unparse(other)})" if _is_compound(other) else ast.unparse(other),
                )
        waiting += [(child, function, known) for child in _worth_changing(node)]


def _words(tree: ast.AST) -> set[str]:
    """All names, attributes and words in a piece of code."""
    parts = {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr", ast.Constant: "value"}
    return {str(getattr(node, parts[type(node)])) for node in ast.walk(tree) if type(node) in parts}


def _worth_changing(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the children of a node, but for annotations, decorators, words, and what only says or refuses something."""
    said = ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases", "msg"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if not isinstance(child, ast.AST) or isinstance(child, said):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.If) and "__name__" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Call) and ast.unparse(child.func).startswith("logger."):
                continue
            yield child


def _is_compound(node: ast.expr) -> bool:
    return not isinstance(
        node, ast.Constant | ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Tuple
    )


def _of_number(node: ast.expr) -> list[tuple[str, ast.expr]]:
    match node:
        case ast.Constant(value=bool() as own):
            return [("a default or flag", ast.Constant(not own))]
        case ast.Constant(value=int() as own):
            return [
                ("an index or number", ast.Constant(own + 1)),
                *([("an index or number", ast.Constant(own - 1))] * (own > 0)),
            ]
        case ast.Constant(value=float() as own):
            return [("a constant", ast.Constant(own * 1.5 if own else 0.25))]
    return []


def _of_expression(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.Compare(ops=[own, *_]):
            for other in COMPARED[type(own)]:
                yield "a comparison", ast.Compare(node.left, [other(), *node.ops[1:]], node.comparators)
        case ast.BoolOp():
            yield "and, or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.BinOp() if type(node.op) in OPERATORS and not _has_words(node):
            yield "an operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as own)):
            yield "an index or number", ast.parse(f"-{own + 1}", mode="eval").body
        case ast.UnaryOp():
            yield "a sign or not", node.operand
        case ast.IfExp():
            yield "a choice", ast.IfExp(node.test, node.orelse, node.body)
        case ast.Tuple(elts=[one, other]) if not any(
            isinstance(own, ast.Slice | ast.Starred) for own in node.elts
        ):
            yield "two exchanged", ast.Tuple([other, one])
        case ast.Attribute(attr="T" | "mT"):
            yield "a step left out", node.value
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=args) if name in STEPS:
            yield from _without(node, args)


def _without(node: ast.Call, args: list[ast.expr]) -> Iterator[tuple[str, ast.expr]]:
    """A call left out: of a method, what it was called on; of a function, what it was given."""
    libraries = ("np", "torch", "math", "functional", "torch.nn.functional", "nn.functional")
    if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in libraries:
        yield "a step left out", node.func.value
    elif len(args) and not isinstance(args[0], ast.Starred | ast.GeneratorExp):
        yield "a step left out", args[0]


def _renamed(node: ast.expr, known: set[str]) -> Iterator[tuple[str, ast.expr]]:
    """What is called by the other name of a pair, where that is known there; the order of two axes of a pattern."""
    functions = {name for pair in _FUNCTIONS for name in pair}
    exchanged = {one: other for one, other in EXCHANGED.items() if one in functions or other in known}
    match node:
        case ast.Constant(value=str() as own) if "->" in own:
            for axes in ("row col", "down across"):
                if axes in own.split("->")[1]:
                    head, _, tail = own.rpartition(axes)
                    yield "two axes", ast.Constant(f"{head}{' '.join(axes.split()[::-1])}{tail}")
        case ast.Constant(value=str() as own) | ast.Name(id=own) if own in exchanged:
            other = copy.deepcopy(node)
            setattr(other, "value" if isinstance(node, ast.Constant) else "id", exchanged[own])
            yield "another of a pair", other
        case ast.Attribute(attr=own) if own in exchanged:
            yield "another of a pair", ast.Attribute(node.value, exchanged[own])


def _has_words(node: ast.BinOp) -> bool:
    words = ast.JoinedStr | ast.List | ast.ListComp | ast.Tuple | ast.Dict | ast.Set
    return any(
        isinstance(one, words) or (isinstance(one, ast.Constant) and isinstance(one.value, str))
        for one in (node.left, node.right)
    )


def sample(found: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many faults: of each function one, then of each a second, in an order that the seed decides."""
    chance, of = random.Random(seed), defaultdict(list)
    for one in found:
        of[one.function].append(one)
    for own in of.values():
        chance.shuffle(own)
    functions = chance.sample(list(of.values()), len(of))
    rounds = [one for turn in zip_longest(*functions) for one in turn if one is not None]
    return rounds[:count]


class Trials:
    """A copy of the repository in a temporary folder, in which a module may be another."""

    def __init__(self, folder: Path, module: str, *, quick: bool = False) -> None:
        left_out = shutil.ignore_patterns(
            ".git", ".venv*", "*.jsonl", "runs", "site", ".*_cache", "__pycache__"
        )
        shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=left_out)
        self.folder, self.file = folder, folder / PACKAGE / f"{module}.py"
        self.source, self.limit = self.file.read_bytes(), 600.0
        self.marks = ("not slow",) if quick else ("not slow", "slow")
        self.tests = [f"tests/{name}" for name in tests_of(module) if (folder / "tests" / name).exists()]

    def unchanged(self) -> None:
        """Run the tests without a fault, which says how long they may take."""
        start = time.monotonic()
        word, by = self.run(self.source)
        if word != "survived":
            raise SystemExit(f"the tests fail without any fault: {by}")
        self.limit = 60 + 5 * (time.monotonic() - start)

    def run(self, source: bytes) -> tuple[str, str]:
        """Return ``noticed`` or ``survived``, and by which test it was noticed."""
        self.file.write_bytes(source)
        for old in (self.file.parent / "__pycache__").glob(f"{self.file.stem}.*"):
            old.unlink()  # times of files are too coarse to tell two faults of a second apart
        for chosen in self.marks:
            code, said = self._pytest(chosen)
            if code not in (0, 5):
                return "noticed", said
        return "survived", ""

    def _pytest(self, chosen: str) -> tuple[int, str]:
        log = self.folder / "said.txt"
        log.touch()
        child = os.fork()
        if not child:
            code = 98
            try:
                code = self._in_child(log, chosen)
            finally:
                traceback.print_exc() if code == 98 else None
                os._exit(code)
        until = time.monotonic() + self.limit
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), _failed(log.read_text(errors="replace"))
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return 1, "took too long"

    def _in_child(self, log: Path, chosen: str) -> int:
        os.setsid()
        os.chdir(self.folder)
        for stream in (1, 2):
            os.dup2(
                os.open(log, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if stream == 1 else os.O_APPEND)), stream
            )
        paths = [str(self.folder), str(self.folder / "tests")]
        sys.path[:0] = paths
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        import pytest

        without = [f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "nbmake")]
        short = ["-x", "-q", "--tb=no", "--no-header", *without]
        loaded = "ignore::pytest.PytestAssertRewriteWarning"  # plugins that torch or timm imports
        code = int(pytest.main([*short, "-W", loaded, "-m", chosen, *self.tests]))
        own = sys.modules.get(PACKAGE)
        elsewhere = own is not None and not str(own.__file__).startswith(str(self.folder))
        sys.stdout.flush()
        return 99 if elsewhere else code


def _failed(said: str) -> str:
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    return found[1] if found else said.strip().splitlines()[-1] if said.strip() else ""


def tests_of(module: str) -> tuple[str, ...]:
    """The tests that concern a module, below tests/."""
    folder, _, name = module.rpartition("/")
    return TESTS.get(module, (f"{folder}/test_{name}.py".lstrip("/"),))


def answers(kept: Path) -> dict[str, dict[str, Any]]:
    """What was answered, by the fault; a later line of the same fault adds to the earlier ones."""
    found: dict[str, dict[str, Any]] = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []:
        one = json.loads(line)
        found.setdefault(one["id"], {}).update(one)
    return found


def add(kept: Path, **facts: Any) -> None:
    """Add a line."""
    with kept.open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def tried(module: str, count: int, seed: int, kept: Path, *, survivors: bool, quick: bool = False) -> None:
    """Try faults of one module that have no answer yet; or those that were not noticed, again."""
    for library in LIBRARIES:
        importlib.import_module(library)
    sys.modules["torch"].set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trials = Trials(Path(folder), module, quick=quick)
        found, known = mutants(trials.source, module), answers(kept)
        if survivors:
            chosen = [
                one
                for one in found
                if known.get(one.id, {}).get("answer") == "survived" and "word" not in known[one.id]
            ]
        else:
            chosen = [one for one in sample(found, count, seed) if "answer" not in known.get(one.id, {})]
        print(f"{module}: {len(chosen)} to try, of {len(found)} that there are", flush=True)
        if chosen:
            trials.unchanged()
        for one in chosen:
            start = time.monotonic()
            answer, by = trials.run(one.applied(trials.source))
            add(
                kept,
                id=one.id,
                **asdict(one),
                answer=answer,
                by=by,
                seconds=round(time.monotonic() - start, 1),
            )
            print(
                f"{answer} {one.id} {one.function}:{one.line} {one.before!r} -> {one.after!r} {by}",
                flush=True,
            )


def table(kept: Path) -> str:
    """What was found, in Markdown: a row for each module, then every fault that nothing notices."""
    of = defaultdict(list)
    for one in answers(kept).values():
        file = ROOT / PACKAGE / f"{one.get('module')}.py"
        if (
            "answer" in one
            and file.exists()
            and hashlib.sha256(file.read_bytes()).hexdigest()[:8] == one["source"]
        ):
            of[one["module"]].append(one)
    text = [
        "| module | tried | noticed | equivalent | tuning | holes | not judged |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    left = ["", "| fault | module | where | before | after | judged |", "|---|---|---|---|---|---|"]
    for module, own in sorted(of.items()):
        missed = [one for one in own if one["answer"] == "survived"]
        counts = [sum(one.get("word") == word for one in missed) for word in WORDS]
        numbers = (len(own), len(own) - len(missed), *counts, len(missed) - sum(counts))
        text.append(f"| {module} | {' | '.join(map(str, numbers))} |")
        for one in sorted(missed, key=lambda one: one["line"]):
            cells = [" ".join(one[name].split()).replace("|", r"\|")[:80] for name in ("before", "after")]
            judged = f"{one['word']}: {one['why']}" if "word" in one else ""
            left.append(
                f"| {one['id']} | {module} | {one['function']} | `{cells[0]}` | `{cells[1]}` | {judged} |"
            )
    return "\n".join([*text, *left])


def main() -> None:
    """Read what was typed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", nargs="?", help="a module below vit_analysis, such as study/numbers")
    parser.add_argument("--count", type=int, default=20, help="how many faults")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--kept", type=Path, default=KEPT, help="the file of answers")
    parser.add_argument(
        "--survivors", action="store_true", help="try again what was not noticed and not judged"
    )
    parser.add_argument(
        "--judge", nargs=3, metavar=("FAULT", "WORD", "WHY"), help=f"one of {', '.join(WORDS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out the tests that tests/slow.txt calls slow"
    )
    parser.add_argument("--table", action="store_true", help="print what was found, in Markdown")
    typed = parser.parse_args()
    if typed.judge:
        fault, word, why = typed.judge
        if word not in WORDS or fault not in answers(typed.kept):
            parser.error(f"judged is a fault of {typed.kept} by one of {', '.join(WORDS)}")
        add(typed.kept, id=fault, word=word, why=why)
    elif typed.table:
        print(table(typed.kept))
    elif typed.module:
        tried(typed.module, typed.count, typed.seed, typed.kept, survivors=typed.survivors, quick=typed.quick)
    else:
        parser.error("which module?")


if __name__ == "__main__":
    main()
