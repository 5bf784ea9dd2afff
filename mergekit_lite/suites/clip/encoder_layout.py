"""Which tensors an open_clip image encoder has: names and shapes, to tell what is one and of which model."""

import re
from collections.abc import Mapping

from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip.benchmark import ClipModel
from mergekit_lite.suites.clip.transformers_format import depth_of, names_of
from mergekit_lite.suites.words import spelt
from mergekit_lite.weights import first_three

Shape = tuple[int, ...]


def layout(width: int, patch: int, positions: int, depth: int, joint: int, inner: int) -> dict[str, Shape]:
    """Return name -> shape of a vision transformer with its projection.

    Args:
        width: of the features between blocks.
        patch: side in pixels.
        positions: patches of an image, and one for the class.
        depth: number of blocks.
        joint: dimensions of the space that images and texts share.
        inner: width inside the MLPs.
    """
    vector = (width,)
    kinds: dict[str, Shape] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "mlp.c_fc.weight": (inner, width),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner),
        "conv1.weight": (width, 3, patch, patch),
        "positional_embedding": (positions, width),
        "proj": (width, joint),
    }
    in_block = re.compile(r"transformer\.resblocks\.\d+\.")
    return {name: kinds.get(in_block.sub("", name), vector) for name in [*names_of(depth), "proj"]}


def layout_of(model: ClipModel) -> dict[str, Shape]:
    """Return name -> shape of the image encoder of `model`, as open_clip describes it."""
    import open_clip  # takes seconds

    described = open_clip.get_model_config(model.architecture)
    assert described is not None  # of a model in `MODELS`
    vision = described["vision_cfg"]
    width, patch = vision["width"], vision["patch_size"]
    positions = 1 + (vision["image_size"] // patch) ** 2
    inner = int(width * vision.get("mlp_ratio", 4.0))
    return layout(width, patch, positions, vision["layers"], described["embed_dim"], inner)


def check_encoder(shapes: Mapping[str, Shape], model: ClipModel | None = None) -> None:
    """Check that tensors of these names and shapes are an image encoder, of `model` if it is given.

    Without a model they must fit one another: width, patches and number of blocks are taken from the tensors.

    Raises:
        KitError: they are not; the first three that do not fit are named.
    """
    expected, what = (layout_of(model), model.title) if model else (_layout_like(shapes), "an open_clip image encoder")
    if model is None and "proj" not in shapes:  # a model's own experts are merged with their projection
        del expected["proj"]
    problems = [f"'{name}' is missing" for name in expected if name not in shapes]
    for name, shape in shapes.items():
        if name not in expected:
            problems.append(f"'{spelt(name)}' is not known")
        elif shape != expected[name]:
            problems.append(f"'{name}' has shape {shape}, not {expected[name]}")
    if problems:
        raise KitError(
            f"its tensors are not those of {what}: {first_three(problems)}. Give the checkpoint of that image encoder"
        )


def _layout_like(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the layout that the first of its tensors speak of; where one of them is odd it will not fit the others."""
    width, _, patch, _ = _sized(shapes, "conv1.weight", 4)
    positions, _ = _sized(shapes, "positional_embedding", 2)
    inner, _ = _sized(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)
    _, joint = _sized(shapes, "proj", 2)
    return layout(width, patch, positions, depth_of(shapes), joint, inner)


def _sized(shapes: Mapping[str, Shape], name: str, sides: int) -> Shape:
    shape = shapes.get(name, ())
    return shape if len(shape) == sides else (0,) * sides
