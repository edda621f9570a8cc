"""Layers without places in the image are refused before a run, with the nearest that has them."""

import pytest
import torch
from torch import Tensor, nn

from vit_analysis import models
from vit_analysis.images import Preprocessing
from vit_analysis.layers import Tap
from vit_analysis.reading.gridded import refuse_without_places
from vit_analysis.spelling import Refusal


class Steps(nn.Module):
    """Modules that return what they are told, one after the other; what a step is given is what the last returned."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.shapes = shapes
        for number in range(len(shapes)):
            self.add_module(f"s{number}", nn.Identity())
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes += [torch.is_inference_mode_enabled(), torch.is_grad_enabled(), self.training]
        for number, shape in enumerate(self.shapes):
            self.get_submodule(f"s{number}")(torch.zeros(shape))
        x.zero_()
        return torch.zeros(1, 5)


MAP, VECTOR = (1, 4, 3, 2), (1, 5)


def refused(module: nn.Module, *taps: str, images: int = 4, pixels: Tensor | None = None) -> str:
    model = models.own(module, "m", preprocessing=Preprocessing())
    given = torch.ones(1, 3, 8, 6) if pixels is None else pixels
    try:
        refuse_without_places(model, [Tap.of(tap) for tap in taps], given, images)
    except Refusal as refusal:
        return str(refusal)
    return ""


def test_a_map_has_places_and_a_vector_has_none_and_its_shape_is_that_of_a_batch():
    assert refused(Steps(MAP, VECTOR), "s0", "s0:in") == ""
    for images in (1, 7):
        said = refused(Steps(MAP, VECTOR), "s0", "s1", images=images)
        assert said.startswith(f"'s1' of m is {images} x 5, ")
        assert said.endswith("choose another layer, such as 's0', the last before it that has")


@pytest.mark.parametrize("shape", [(), (3, 5), (2, 4, 3, 2)])
def test_what_is_not_of_one_image_is_left_to_the_run(shape):
    assert refused(Steps(shape), "s0") == ""
    assert "such as" not in refused(Steps(shape, VECTOR), "s1")  # and nothing is known of it


def test_the_nearest_is_the_last_module_before_whose_output_has_places():
    module = Steps(MAP, MAP, VECTOR, MAP, VECTOR, MAP)
    assert "such as 's1', the last before" in refused(module, "s2")
    assert "such as 's3', the last before" in refused(module, "s4")
    assert "such as 's1', the last before" in refused(module, "s4", "s2")  # of the first that has none
    assert "such as" not in refused(Steps(VECTOR, MAP), "s0")
    # Images themselves are a map, but no module's output.
    assert "such as" not in refused(Steps(VECTOR, MAP), ":in", "s0")
    assert "such as" not in refused(Steps(VECTOR, MAP), "s0:in")
    assert "such as '0', the last before" in refused(nn.Sequential(nn.Identity(), nn.Flatten()), "1:in", "1")


@pytest.mark.parametrize("count", range(1, 7))
def test_three_others_are_named_and_the_rest_counted(count):
    names = [f"s{number}" for number in range(count)]
    said = refused(Steps(*[VECTOR] * count), *names)
    _, _, others = said.partition("; nor has anything in ")
    expected = ", ".join(repr(name) for name in names[1:4]) + (f" and {count - 4} more" if count > 4 else "")
    assert others == expected


def test_neither_the_image_nor_the_model_nor_the_mode_of_the_caller_is_changed():
    module, pixels = Steps(MAP).train(), torch.ones(1, 3, 8, 6)
    with torch.inference_mode():
        refused(module, "s0", pixels=pixels)
    assert module.modes == [False, False, False]
    assert module.training
    assert (pixels == 1).all()
    assert not any(own._forward_hooks or own._forward_pre_hooks for own in module.modules())


def test_a_model_that_fails_is_said_to_and_what_it_refuses_itself_stays():
    class Broken(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def forward(self, _: Tensor) -> Tensor:
            raise self.error

    assert refused(Broken(ValueError("odd")), "").startswith("Broken does not take images of 3 x 8 x 6: odd")
    assert refused(Broken(Refusal("mine")), "") == "mine"
    with pytest.raises(FileNotFoundError, match="gone"):
        refused(Broken(FileNotFoundError("gone")), "")
