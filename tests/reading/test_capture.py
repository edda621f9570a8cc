import pytest
import timm
import torch
from torch import nn

from vit_analysis.layers import Branch, Tap
from vit_analysis.reading.capture import Capture, Layer, Seen
from vit_analysis.reading.intervene import channels_last, edited, evaluating, true_branches
from vit_analysis.spelling import Refusal


class Backwards(nn.Module):
    """Modules that run in another order than they are defined."""

    def __init__(self):
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Overwriting(nn.Module):
    """What a module returned is overwritten by the next one."""

    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(3), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm(x)
        self.act(y)
        y += 100
        return y


class Returning(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value(x)


def names(seen) -> list[str]:
    return [str(layer) for layer in seen]


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (Layer(Tap("0")), "0"),
        (Layer(Tap("0"), 2), "0#2"),
        (Layer(Tap("0"), key="[0]"), "0[0]"),
        (Layer(Tap("0", "in"), 3, "[a][1]"), "0:in#3[a][1]"),
        (Layer(Tap("", "heads")), ":heads"),
    ],
)
def test_a_layer_prints_its_tap_its_run_and_its_place_among_several_tensors(layer, name):
    assert str(layer) == name
    assert Seen({layer: 7})[name] == 7


def test_what_was_seen_is_found_by_layer_tap_or_name_and_else_the_nearest_name_is_told():
    with Capture(Backwards(), ["first", Tap("middle", "in")]) as run:
        seen = run(torch.ones(2, 4))
    layer = Layer(Tap("middle", "in"))
    assert list(seen) == [Layer(Tap("first")), layer]
    assert seen[layer] is seen[layer.tap] is seen["middle:in"]
    with pytest.raises(KeyError, match=r"nothing was kept of 'midle:in'; did you mean 'middle:in'\?"):
        seen["midle:in"]
    with pytest.raises(KeyError, match=r"nothing was kept of 'last'; there are 'first', 'middle:in'"):
        seen[Layer(Tap("last"))]
    assert "midle:in" not in seen


def test_a_tap_that_is_named_twice_is_read_once():
    reads = []
    taps = ["first", Tap("first"), Tap.of("first"), Tap("first", "in")]
    with Capture(Backwards(), taps, lambda layer, _: reads.append(str(layer))) as run:
        run(torch.ones(2, 4))
    assert reads == ["first:in", "first"]


def test_layers_come_in_order_of_execution_whatever_the_order_of_definition_or_of_taps():
    with Capture(Backwards(), ["last", "first", "middle"]) as run:
        assert names(run(torch.randn(2, 4))) == ["first", "middle", "last"]


def test_a_kept_activation_survives_a_later_in_place_operation():
    model = Overwriting().eval()
    images = torch.randn(2, 3, 4, 4)
    with Capture(model, ["norm"]) as run:
        seen = run(images)
    torch.testing.assert_close(seen["norm"], nn.functional.batch_norm(images, torch.zeros(3), torch.ones(3)))


def test_the_input_of_a_module_is_read_before_the_module_runs():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    with Capture(model, ["1:in", "1"]) as run:
        seen = run(torch.randn(5, 4))
    assert names(seen) == ["1:in", "1"]
    assert seen["1:in"].min() < 0 <= seen["1"].min()


def test_the_empty_path_is_the_model_itself():
    images = torch.randn(2, 4)
    with Capture(Backwards(), [":in", ""]) as run:
        seen = run(images)
    torch.testing.assert_close(seen[":in"], images)
    assert seen[""].shape == (2, 4)


def test_a_module_that_runs_twice_gives_two_layers():
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Linear(3, 2), shared)
    with Capture(model, ["0"]) as run:
        assert {str(layer): tuple(x.shape) for layer, x in run(torch.randn(5, 3)).items()} == {
            "0": (5, 3),
            "0#2": (5, 2),
        }
        assert names(run(torch.randn(5, 3))) == ["0", "0#2"]  # counted per pass


def test_a_module_that_never_runs_is_an_error_that_says_so():
    class Lazy(Backwards):
        def forward(self, x):
            return self.first(x)

    with (
        Capture(Lazy(), ["first", "middle"]) as run,
        pytest.raises(Refusal, match="'middle' did not run"),
    ):
        run(torch.randn(2, 4))


def test_fused_attention_is_reported_not_ignored():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32).eval()
    assert model.blocks[0].attn.fused_attn
    with (
        Capture(model, ["blocks.0.attn.attn_drop"]) as run,
        pytest.raises(Refusal, match=r"'blocks.0.attn.attn_drop' did not run"),
    ):
        run(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("value", "layers"),
    [
        (lambda x: (x, None), ["0"]),
        (lambda x: (x, x.argmax(1)), ["0"]),
        (lambda x: (x, x + 1), ["0[0]", "0[1]"]),
        (lambda x: {"tokens": x, "attention": [x, x]}, ["0[tokens]", "0[attention][0]", "0[attention][1]"]),
    ],
)
def test_tuples_and_mappings_give_one_layer_per_tensor(value, layers):
    class Ending(nn.Module):
        def forward(self, x):
            return torch.zeros(1) if not isinstance(x, torch.Tensor) else x

    with Capture(nn.Sequential(Returning(value), Ending()), ["0"]) as run:
        assert names(run(torch.randn(2, 4))) == layers


def test_a_module_without_a_floating_point_output_is_an_error():
    model = nn.Sequential(Returning(lambda x: x.argmax(1)))
    with (
        Capture(model, ["0"]) as run,
        pytest.raises(Refusal, match="'0' passes on Tensor without a floating-point tensor"),
    ):
        run(torch.randn(2, 4))


def test_a_misspelt_layer_is_an_error_with_the_nearest_right_names():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32)
    message = r"no layer 'blocks.3.atn' in VisionTransformer; did you mean 'blocks.3.attn'"
    with pytest.raises(Refusal, match=message), Capture(model, ["blocks.3.atn"]):
        pass


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Sequential(nn.Linear(4, 4)), r"Sequential does not take images of 3 x 5 x 5: mat1 and mat2"),
        (Returning(lambda _: 1 / 0), r"Returning does not take images of 3 x 5 x 5: division by zero$"),
        (Returning(lambda _: {}["height"]), r"Returning does not take images of 3 x 5 x 5: 'height'$"),
    ],
)
def test_what_fails_inside_a_model_is_a_sentence_about_the_model_and_its_images(model, sentence):
    with Capture(model, [":in"]) as run, pytest.raises(Refusal, match=f"^{sentence}") as refused:
        run(torch.zeros(2, 3, 5, 5))
    assert refused.value.__cause__ is not None  # whoever wants to know where sees it


def test_also_where_only_its_branches_are_looked_for():
    model = nn.Sequential(nn.Linear(4, 4))
    branch = Branch("0", "unit", Tap("0", "in"), Tap("0"), Tap("0"))
    with pytest.raises(Refusal, match=r"^Sequential does not take images of 3 x 5 x 5: mat1 and mat2"):
        true_branches(model, [branch], torch.zeros(2, 3, 5, 5))


def test_a_device_without_room_says_how_to_need_less():
    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    sentence = r"the memory of cpu is full with 2 images in Returning; lower images.batch"
    with Capture(Returning(full), [":in"]) as run, pytest.raises(Refusal, match=sentence):
        run(torch.zeros(2, 3, 5, 5))


@pytest.mark.parametrize(
    "fault", [ValueError("mine"), RuntimeError("mine"), KeyError("mine"), OSError("mine")]
)
def test_a_fault_of_the_reducer_is_not_told_as_one_of_the_model(fault):
    def reduce(*_):
        raise fault

    with Capture(Backwards(), ["first"], reduce) as run, pytest.raises(type(fault)) as raised:
        run(torch.ones(2, 4))
    assert raised.value is fault


def test_after_a_pass_that_failed_the_next_one_is_as_if_it_had_not_been():
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4))
    with Capture(model, ["0"]) as run:
        with pytest.raises(Refusal, match="does not take images of 5"):
            run(torch.zeros(3, 5))
        assert {str(layer): tuple(x.shape) for layer, x in run(torch.zeros(2, 4)).items()} == {"0": (2, 4)}


def test_no_hook_stays_whatever_ends_the_block():
    model = Backwards()

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    with pytest.raises(ZeroDivisionError), Capture(model, ["first", "last:in"]):
        1 / (hooks() - 2)
    assert hooks() == 0
    with pytest.raises(Refusal), Capture(model, ["first", "nowhere"]):
        pass
    assert hooks() == 0


def test_reduce_decides_what_is_kept_and_none_leaves_a_layer_out():
    with Capture(
        Backwards(),
        ["first", "last"],
        lambda layer, x: x.sum().item() if layer == Layer(Tap("last")) else None,
    ) as run:
        assert names(run(torch.ones(2, 4))) == ["last"]


def test_the_gradient_flows_through_what_was_kept():
    model, images = Backwards(), torch.randn(2, 4, requires_grad=True)
    with Capture(model, ["middle"]) as run:
        run(images)["middle"].sum().backward()
    assert images.grad.abs().min() > 0


def test_a_middle_residual_is_what_the_second_norm_is_given():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    with Capture(model, ["blocks.0:in", "blocks.0.attn", "blocks.0.norm2:in"]) as run, torch.inference_mode():
        seen = run(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(seen["blocks.0:in"] + seen["blocks.0.attn"], seen["blocks.0.norm2:in"])


def test_evaluating_gives_every_module_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).train()
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_an_edit_changes_what_the_rest_of_the_model_sees_and_is_undone():
    model = nn.Sequential(nn.Identity(), nn.Identity())
    images = torch.randn(2, 3)
    with edited(model, {"0": lambda x: 10 * x}), Capture(model, ["0", "1"]) as run:
        seen = run(images)
    torch.testing.assert_close(seen["1"], 10 * images)
    torch.testing.assert_close(seen["0"], 10 * images)
    torch.testing.assert_close(model(images), images)


def test_channels_last_changes_the_memory_and_not_the_numbers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    weights, strides = [p.clone() for p in model.parameters()], [p.stride() for p in model.parameters()]
    expected = model(images := torch.randn(2, 3, 8, 8))
    with channels_last(model), Capture(model, ["0"]) as run:
        torch.testing.assert_close(model(images), expected)
        assert run(images)["0"].is_contiguous(memory_format=torch.channels_last)
    assert [p.stride() for p in model.parameters()] == strides
    assert all(torch.equal(p, weight) for p, weight in zip(model.parameters(), weights, strict=True))


# Axes of images, and messages ----------------------------------------------------------------------------------------------


class Shapes(nn.Module):
    """Passes on a tensor of another shape for each number of images."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.shape, self.one, self.given = shape, nn.Identity(), []

    def forward(self, x):
        self.given.append(x.clone())
        self.one(torch.arange(float(torch.Size(self.shape(len(x))).numel())).view(self.shape(len(x))))
        x.zero_()
        return x


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        (lambda n: (n, 4), 0),
        (lambda n: (4, n), 1),
        (lambda n: (2, n, 5), 1),  # as many tokens as images the first time
        (lambda n: (3, n, 5), 1),  # and the second
        (lambda n: (2, 3, n), 2),
        (lambda n: (n, n), 0),  # of a square the rows
        (lambda _: (4, 5), None),
        (lambda n: (n + 1, 5), None),
        (lambda n: (5, 2 * n), None),
        (lambda n: (n, 5) if n == 2 else (n, 5, 1), None),
        (lambda _: (), None),
    ],
)
def test_images_lie_along_the_first_axis_that_grows_from_two_to_three(shape, axis):
    module, pixels = Shapes(shape), torch.randn(5, 3, 2)
    with Capture(module, ["one"]) as run:
        run.learn_axes(pixels)
        assert run.axes == {Layer(Tap("one")): axis}
        assert [len(own) for own in module.given] == [2, 3]
        assert all(
            torch.equal(own, pixels[:1].expand_as(own)) for own in module.given
        )  # nothing is written into them
        if axis is None:
            with pytest.raises(Refusal, match=r"'one' passes on .+ for 7 images, not one row per image"):
                run(torch.zeros(7, 3, 2))
        else:
            seen = run(torch.zeros(7, 3, 2))["one"]
            assert len(seen) == 7
            whole = torch.arange(float(seen.numel())).view(shape(7))
            assert torch.equal(seen, whole.movedim(axis, 0))


def test_axes_are_of_each_run_and_each_of_several_tensors():
    twice = nn.Identity()

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.pair = twice, Returning(lambda x: (x, x.mT))

        def forward(self, x):
            self.twice(x)
            self.twice(x.mT)
            self.pair(x)
            return x

    with Capture(Both(), ["twice", "pair"]) as run:
        run.learn_axes(torch.randn(2, 4))
        seen = run(x := torch.randn(5, 4))
    assert {str(layer): axis for layer, axis in run.axes.items()} == {
        "twice": 0,
        "twice#2": 1,
        "pair[0]": 0,
        "pair[1]": 1,
    }
    assert names(seen) == ["twice", "twice#2", "pair[0]", "pair[1]"]
    assert all(torch.equal(own, x) for own in seen.values())


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize(
    "error", [ValueError("odd\nand more"), ValueError(), Refusal("mine"), FileNotFoundError("gone")]
)
def test_what_a_model_fails_with_is_said_in_a_line_and_what_it_refuses_stays(learns, error):
    def fail(_):
        raise error

    said = {"odd\nand more": "odd", "": "ValueError"}.get(str(error))
    kind = Refusal if said else type(error)
    with Capture(Returning(fail), [":in"]) as run:
        with pytest.raises(kind) as raised:
            (run.learn_axes if learns else run)(torch.zeros(2, 3, 5, 4))
        assert run._shapes is None  # so that the next pass is one that reads
    assert str(raised.value) == (
        f"Returning does not take images of 3 x 5 x 4: {said}" if said else str(error)
    )


@pytest.mark.parametrize("count", [1, 3, 4, 6])
@pytest.mark.parametrize("at", ["out", "heads"])
def test_of_taps_that_saw_nothing_three_are_named_and_the_reason_is_that_of_their_kind(count, at):
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            for number in range(count):
                self.add_module(f"m{number}", nn.Linear(2, 2))

        def forward(self, x):
            return x

    taps = [Tap(f"m{number}", at) for number in range(count)]
    named = ", ".join(repr(str(tap)) for tap in taps[:3]) + (f" and {count - 3} more" if count > 3 else "")
    why = (
        "an attention that does not call scaled_dot_product_attention"
        if at == "heads"
        else "a fused or skipped module"
    )
    with Capture(Lazy(), taps) as run, pytest.raises(Refusal) as raised:
        run(torch.zeros(2, 2))
    assert str(raised.value).startswith(
        f"{named} did not run in the forward pass of Lazy, so there is nothing to read ({why}?)"
    )


def test_what_was_seen_is_the_caller_s_alone_and_images_are_unknown_outside_a_pass():
    with Capture(Backwards(), ["first"]) as run:
        run.model(torch.ones(3, 4))
        assert [len(own) for own in run._seen.values()] == [3]
        one = run(torch.ones(2, 4))
        assert run._seen == {}
        assert run._seen is not one
        run.model(torch.ones(3, 4))  # called by others: how many images there are is not known
        assert run._images == 0
        assert [len(own) for own in run._seen.values()] == [3]
        assert len(one) == 1
        assert len(run(torch.ones(5, 4))["first"]) == 5


def test_the_only_tensor_of_several_has_no_place_and_inputs_by_name_have_theirs():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = Returning(lambda x: x)
            self.one.forward = lambda a, b=None: (a, b)[0]

        def forward(self, x):
            self.one(a=x, b=2 * x)
            self.one(x, b=2 * x)
            return x

    with Capture(Named(), ["one:in"]) as run:
        seen = run(x := torch.randn(3, 2))
    assert names(seen) == ["one:in[a]", "one:in[b]", "one:in#2"]
    for own, expected in zip(seen.values(), (x, 2 * x, x), strict=True):
        assert torch.equal(own, expected)


def test_heads_are_a_layer_of_their_own_that_knows_how_many_images_there_are():
    class Attends(nn.Module):
        def forward(self, x):
            parts = x.unflatten(0, (-1, 2))  # as of windows: other rows than images
            return nn.functional.scaled_dot_product_attention(*[parts] * 3).sum()

    with Capture(nn.Sequential(Attends()), ["0:heads"], lambda _, own: own) as run:
        seen = run(torch.randn(6, 5, 3))
        assert names(seen) == ["0:heads"]
        assert seen["0:heads"].images == 6
        run.model(torch.randn(4, 5, 3))  # called by others: as many as there are rows
        (heads,) = run._seen.values()
        assert heads.images == len(heads) == 2
