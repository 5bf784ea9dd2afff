"""Pickled checkpoints: read without running them, hostile ones refused by name, damaged ones worded."""

import collections
import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from mergekit_lite.cache import file_digest
from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.suites.clip import pickled
from mergekit_lite.suites.clip.encoder_layout import check_encoder, layout
from mergekit_lite.weight_files import LazyWeights, read
from mergekit_lite.weights import weights_hash

WIDTH = 8
LAYOUT = layout(width=WIDTH, patch=4, positions=5, depth=1, joint=5, inner=32)
THEIRS = ("src", "src.modeling", "open_clip", "open_clip.model", "open_clip.transform")


def module(name: str, **members: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(members)
    for member in members.values():
        member.__module__, member.__qualname__ = name, member.__name__
    return made


def block() -> nn.Module:
    made = nn.Module()
    made.ln_1, made.attn, made.ln_2 = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, 2), nn.LayerNorm(WIDTH)
    mlp = {"c_fc": nn.Linear(WIDTH, 32), "gelu": nn.GELU(), "c_proj": nn.Linear(32, WIDTH)}
    made.mlp = nn.Sequential(collections.OrderedDict(mlp))
    return made


def tensors(**others: Any) -> dict[str, Any]:
    """Return the tensors of an encoder by open_clip's names, some of them other ones (`__` stands for a dot)."""
    named = {name.replace("__", "."): tensor for name, tensor in others.items()}
    return {name: torch.randn(shape) for name, shape in LAYOUT.items()} | named


def encoder() -> nn.Module:
    """Make an encoder whose classes are called like the authors': their modules exist only while it is pickled."""

    class VisualTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, WIDTH, 4, stride=4, bias=False)
            self.class_embedding = nn.Parameter(torch.randn(WIDTH))
            self.positional_embedding = nn.Parameter(torch.randn(5, WIDTH))
            self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.transformer = nn.Module()
            self.transformer.resblocks = nn.Sequential(block())
            self.proj = nn.Parameter(torch.randn(WIDTH, 5))
            self.register_buffer("counter", torch.zeros(3, dtype=torch.int64))

    class CLIP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = VisualTransformer()
            self.token_embedding = nn.Embedding(7, WIDTH)
            self.logit_scale = nn.Parameter(torch.ones([]))
            self.register_buffer("attn_mask", torch.zeros(2, 2), persistent=False)  # leaves a set in the pickle

    def _convert_to_rgb(image: Any) -> Any:
        return image

    class ImageEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = CLIP()
            self.val_preprocess = [_convert_to_rgb, torch.Size([3]), collections.OrderedDict(side=224)]

    modules = {
        "src": module("src"),
        "src.modeling": module("src.modeling", ImageEncoder=ImageEncoder),
        "open_clip": module("open_clip"),
        "open_clip.model": module("open_clip.model", VisualTransformer=VisualTransformer, CLIP=CLIP),
        "open_clip.transform": module("open_clip.transform", _convert_to_rgb=_convert_to_rgb),
    }
    sys.modules.update(modules)
    torch.manual_seed(0)
    return ImageEncoder()


@pytest.fixture
def model() -> Iterator[nn.Module]:
    before = {name: sys.modules.get(name) for name in THEIRS}
    yield encoder()
    for name, found in before.items():
        if found is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = found


def saved(path: Path, content: Any, *, old: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def visual(model: nn.Module) -> dict[str, Tensor]:
    named = model.named_parameters()
    return {name.split("visual.")[1]: tensor.detach() for name, tensor in named if "visual." in name}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("old", [False, True], ids=["archive", "before 1.6"])
def test_a_pickled_encoder_is_converted_without_its_classes(tmp_path: Path, model: nn.Module, old: bool) -> None:
    expected = visual(model)
    source = saved(tmp_path / "finetuned.pt", model, old=old)
    for name in THEIRS:
        del sys.modules[name]  # the authors' classes cannot be imported where their files are read
    written = pickled.convert(source)
    assert written == tmp_path / "finetuned.safetensors"
    assert same(read(written), expected)
    assert expected.keys() == LAYOUT.keys()
    metadata = LazyWeights(written).metadata
    assert metadata["family"] == "OC-8"
    assert metadata["source"] == "finetuned.pt"
    assert metadata["source_sha256"] == file_digest(source)
    assert metadata["weights"] == weights_hash(expected)
    assert metadata["projection"] == "proj: fine-tuned with the encoder"
    assert "src.modeling" not in sys.modules


@pytest.mark.parametrize("prefix", ["model.visual.", "visual.", ""])
@pytest.mark.parametrize("old", [False, True])
def test_a_plain_state_dict_is_read_too(tmp_path: Path, prefix: str, old: bool) -> None:
    weights = tensors(ln_pre__bias=torch.randn(16).half()[::2])
    del weights["proj"]
    named = {prefix + name: tensor for name, tensor in weights.items()}
    source = saved(tmp_path / "x.pt", {**named, "token_embedding.weight": torch.ones(2)} if prefix else named, old=old)
    written = pickled.convert(source, tmp_path / "out" / "y.safetensors", family="OC-20")
    assert same(read(written), weights)
    metadata = LazyWeights(written).metadata
    assert (metadata["family"], metadata["projection"]) == ("OC-20", "none")


def test_the_command_prints_the_file_and_its_hash(tmp_path: Path) -> None:
    source = saved(tmp_path / "x.pt", tensors())
    result = CliRunner().invoke(app, ["convert", str(source)])
    written = tmp_path / "x.safetensors"
    assert result.stdout.split() == [str(written), weights_hash(read(written))]


# --- hostile ----------------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def archive(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
    return path


def hostile(sentinel: Path) -> dict[str, tuple[Any, str]]:
    touch = f"open({str(sentinel)!r}, 'w')"
    return {
        "system": (Call(os.system, f"touch {sentinel}"), f"`{os.system.__module__}.system`"),
        "eval": (Call(eval, touch), "`builtins.eval`"),
        "open": (Call(open, str(sentinel), "w"), "`io.open`"),
        "getattr": (Call(getattr, Call(__import__, "os"), "system"), "`builtins.getattr`"),
        "nested": ({"conv1.weight": [Call(set, (Call(exec, touch),))]}, "`builtins.exec`"),
        "path": (sentinel, "`pathlib.PosixPath`"),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["system", "eval", "open", "getattr", "nested", "path"])
def test_a_hostile_pickle_is_refused_by_name_before_anything_in_it_runs(
    tmp_path: Path, kind: str, protocol: int
) -> None:
    sentinel = tmp_path / "sentinel"
    content, name = hostile(sentinel)[kind]
    stored = pickle.dumps(content, protocol=protocol)
    magic = pickle.dumps(pickled.MAGIC, protocol=2)
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(content, protocol=2))
    old = tmp_path / "old.pt"
    old.write_bytes(magic + pickle.dumps(1001, protocol=2) + stored)
    for source in (archive(tmp_path / "new.pt", stored), old, bare):
        with pytest.raises(KitError) as caught:
            pickled.convert(source)
        words = str(caught.value).replace("`_io.", "`io.").replace("pathlib._local", "pathlib")
        assert f"is not converted: it refers to {name}, which no image encoder needs" in words
        assert not sentinel.exists()
        assert not source.with_suffix(".safetensors").exists()
    pickle.loads(stored) if kind in ("eval", "open") else None  # the same bytes do harm where nobody checks
    assert sentinel.exists() == (kind in ("eval", "open"))


def test_a_hostile_storage_type_is_refused(tmp_path: Path) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", eval, "0", "cpu", 1) if isinstance(value, bytearray) else None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"conv1.weight": bytearray()})
    with pytest.raises(KitError, match=r"`builtins\.eval`"):
        pickled.convert(archive(tmp_path / "x.pt", stream.getvalue()))


def test_allowed_names_only_store_what_they_are_given(tmp_path: Path) -> None:
    """A listed name is not called either: `open_clip.anything` may be spelt so as to reach any function."""
    hidden = b"\x80\x02copen_clip.model\nos.system\nX\x01\x00\x00\x00x\x85R."
    with pytest.raises(KitError, match="it holds no open_clip image encoder, but no tensors at all"):
        pickled.convert(archive(tmp_path / "x.pt", hidden))
    assert "open_clip.model" not in sys.modules or not hasattr(sys.modules["open_clip.model"], "os.system")


# --- damaged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_truncated_file_is_said(tmp_path: Path, old: bool, share: float) -> None:
    source = saved(tmp_path / "x.pt", tensors(), old=old)
    content = source.read_bytes()
    source.write_bytes(content[: int(share * len(content))])
    with pytest.raises(KitError, match=r"x\.pt is not (a whole checkpoint of torch\.save|converted: it is neither)"):
        pickled.convert(source)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "x.pt", tensors(conv1__weight=torch.zeros(7, 3)))
    with zipfile.ZipFile(source) as file:
        parts = {entry.filename: file.read(entry) for entry in file.infolist()}
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    assert parts[name].count(b"K\x07") == 1
    parts[name] = parts[name].replace(b"K\x07", b"K\x09")  # nine rows where the storage has seven
    with zipfile.ZipFile(source, "w") as file:
        for part, content in parts.items():
            file.writestr(part, content)
    with pytest.raises(KitError, match=r"a tensor of shape \(9, 3\) reaches beyond its storage"):
        pickled.convert(source)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weight": torch.ones(2), "bias": torch.ones(2)}, "it holds no open_clip image encoder, but 'weight'; 'bias'"),
        (
            tensors(ln_pre__bias=torch.ones(8, dtype=torch.int64)),
            "must be floating-point, but 'ln_pre.bias' is torch.i",
        ),
        (tensors(ln_pre__bias=torch.full((8,), torch.nan)), "NaN or infinite values in"),
        (
            tensors(proj=torch.ones(9, 5)),
            "not those of an open_clip image encoder: 'proj' has shape (9, 5), not (8, 5)",
        ),
        (tensors(adapter=torch.ones(2)), "'adapter' is not known"),
        ({"state_dict": {}, "epoch": 3}, "no tensors at all, only the entries 'state_dict'; 'epoch'. Give the file"),
        ({"state_dict": [1, {"a": torch.ones(1)}]}, "but 'state_dict.1.a'. Give the file"),
        ({"conv1.weight": torch.ones(1), "class_embedding": torch.ones(1)}, "'positional_embedding' is missing"),
    ],
)
def test_what_is_no_encoder_is_said(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(KitError) as caught:
        pickled.convert(saved(tmp_path / "x.pt", content))
    assert words in str(caught.value)


def test_other_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"There is no checkpoint .*missing\.pt\. Check the path\."):
        pickled.convert(tmp_path / "missing.pt")
    with pytest.raises(KitError, match=r"is called safetensors already"):
        pickled.convert(tmp_path / "x.safetensors")
    text = tmp_path / "page.pt"
    text.write_text("<html>quota exceeded</html>")  # what a download that was refused leaves
    with pytest.raises(KitError, match=r"neither an archive nor a pickle of torch\.save"):
        pickled.convert(text)
    with pytest.raises(KitError, match=r"TorchScript perhaps"):
        pickled.convert(scripted(tmp_path / "z.pt"))
    with pytest.raises(KitError, match=r"is a folder\. Name the checkpoint in it: page\.pt; z\.pt\.$"):
        pickled.convert(tmp_path)
    with pytest.raises(KitError, match=r"/dev/zero is a device or a pipe\. Name a checkpoint that is a file"):
        pickled.convert(Path("/dev/zero"), tmp_path / "zero.safetensors")
    with pytest.raises(KitError, match=r"cannot be read \(File name too long\)"):
        pickled.convert(tmp_path / ("x" * 300))


def scripted(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in ("data.pkl", "constants.pkl"):
            file.writestr(f"z/{name}", b"")
    return path


def test_the_checkpoint_itself_is_never_written_to(tmp_path: Path) -> None:
    source = saved(tmp_path / "x.pt", tensors())
    before = source.read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.pt").symlink_to(source)
    (tmp_path / "hard.pt").hardlink_to(source)
    for output in (source, tmp_path / "sub" / ".." / "x.pt", tmp_path / "link.pt", tmp_path / "hard.pt"):
        with pytest.raises(KitError, match="is the checkpoint itself, which stays as it is"):
            pickled.convert(source, output)
    with pytest.raises(KitError, match=r"sub is a folder\. Name the file to write in it"):
        pickled.convert(source, tmp_path / "sub")
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hard.pt", "link.pt", "sub", "x.pt"]


def test_a_state_dict_among_other_things_is_read(tmp_path: Path) -> None:
    weights = tensors()
    named = {f"module.visual.{name}": tensor for name, tensor in weights.items()}
    text = {"module.positional_embedding": torch.ones(2), "module.token_embedding.weight": torch.ones(2)}
    content = {"epoch": 3, "state_dict": named | text, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    assert same(read(pickled.convert(saved(tmp_path / "x.pt", content))), weights)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("wrapped", "said"),
    [
        (lambda weights: {"state_dict": weights}, "The image encoder is in the entry 'state_dict'.\n"),
        (
            lambda weights: {"epoch": 3, "model": collections.OrderedDict(weights)},
            "The image encoder is in the entry 'model'. What else there is, 'epoch', is left out.\n",
        ),
        (
            lambda weights: [weights, 3],
            "The image encoder is in the entry '0'. What else there is, '1', is left out.\n",
        ),
        (lambda weights: {"model": ({"state_dict": weights},)}, "The image encoder is in the entry 'model'.\n"),
        (lambda weights: {f"model.visual.{name}": tensor for name, tensor in weights.items()}, ""),
    ],
)
def test_an_encoder_in_an_entry_is_found_and_the_entry_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrapped: Any, said: str, old: bool
) -> None:
    weights = tensors()
    assert same(read(pickled.convert(saved(tmp_path / "x.pt", wrapped(weights), old=old))), weights)
    assert capsys.readouterr().out == said


def test_of_two_encoders_none_is_dropped_in_silence(tmp_path: Path) -> None:
    content = {f"{part}.{name}": tensor for part in ("student.visual", "ema") for name, tensor in tensors().items()}
    with pytest.raises(KitError, match=r"it holds 2 image encoders, 'student\.visual\.' and 'ema\.'\. Save the one"):
        pickled.convert(saved(tmp_path / "x.pt", content))
    with pytest.raises(KitError, match=r"'state_dict\.' and 'ema_state_dict\.'"):
        pickled.convert(saved(tmp_path / "x.pt", {"state_dict": tensors(), "ema_state_dict": tensors()}))


def test_views_of_one_storage_are_read_once_and_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.randn(sum(torch.Size(shape).numel() for shape in LAYOUT.values()) + 1_000_000)
    weights, start = {}, 0
    for name, shape in LAYOUT.items():
        size = torch.Size(shape).numel()
        weights[name] = whole[start : start + size].view(shape)
        start += size
    source, opened = saved(tmp_path / "x.pt", weights), []
    usual = zipfile.ZipFile.read

    def noted(self: zipfile.ZipFile, name: str) -> bytes:
        opened.append(name)
        return usual(self, name)

    monkeypatch.setattr(zipfile.ZipFile, "read", noted)
    with source.open("rb") as stream:
        found = pickled._read(stream, pickled._image_encoder, check_encoder)
    assert same(found, weights)
    assert [name.split("/")[-2:] for name in opened] == [["x", "data.pkl"], ["data", "0"]]
    assert all(tensor.untyped_storage().nbytes() == 4 * tensor.numel() for tensor in found.values())


def test_numbers_that_are_there_once_do_not_fill_many_tensors(tmp_path: Path) -> None:
    """A file of some kilobytes would else become any number of gigabytes."""
    content = tensors(positional_embedding=torch.ones(1).expand(5, WIDTH))
    with pytest.raises(KitError, match=r"more numbers are wanted than are there: 'positional_embedding' overlap"):
        pickled.convert(saved(tmp_path / "x.pt", content))


def test_modules_that_are_shared_are_gone_through_once(tmp_path: Path, model: nn.Module) -> None:
    expected = visual(model)
    for _ in range(60):  # two paths on each level: 2**60 in all
        outer = nn.Module()
        outer.a = outer.b = model
        model = outer
    assert same(read(pickled.convert(saved(tmp_path / "x.pt", model))), expected)


DEPTH = 50_000
RECORD = b"ccollections\nOrderedDict\nq\x00"
DEEP = {
    "tuples": b")" + b"\x85" * 200_000 + b".",
    "tuples as a key": b"})" + b"\x85" * 200_000 + b"K\x01s.",
    "tuples twice in each other, as a key": b"})" + b"2\x86" * 60 + b"K\x01s.",
    "lists": b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
    "dictionaries": b"}U\x01a" * DEPTH + b"N" + b"s" * DEPTH + b".",
    "calls": RECORD + b"h\x00" * DEPTH + b"N" + b"\x85R" * DEPTH + b".",
    "states": RECORD + b"h\x00)R" * DEPTH + b"N" + b"b" * DEPTH + b".",
}


def test_however_deep_a_file_is_nested_an_error_says_so(tmp_path: Path) -> None:
    """In a process of its own: Python's own reader ends the interpreter on one of these, and never ends on another."""
    sources = [archive(tmp_path / f"{kind}.pt", b"\x80\x02" + content) for kind, content in DEEP.items()]
    code = """if True:
        import sys
        from pathlib import Path
        from mergekit_lite.errors import KitError
        from mergekit_lite.suites.clip import pickled
        for source in sys.argv[1:]:
            try:
                pickled.convert(Path(source))
            except KitError as error:
                print(error, flush=True)
    """
    command = [sys.executable, "-c", code, *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(DEEP)
    assert all(f"{kind}.pt is not " in line for kind, line in zip(DEEP, lines, strict=True))


@pytest.mark.parametrize("key", ["visual.\x1b[2Jconv1.weight", "\x1b]0;owned\x07", "a\rb"])
def test_names_in_a_file_cannot_move_the_cursor(tmp_path: Path, key: str) -> None:
    for content in ({key: torch.ones(2)}, tensors() | {key: torch.ones(2)}):
        with pytest.raises(KitError) as told:
            pickled.convert(saved(tmp_path / "x.pt", content))
        assert str(told.value).isprintable()
        assert ascii(key)[1:-1] in str(told.value)
    module = f"c{key}\nmodel\n.".encode()
    with pytest.raises(KitError, match=r"it refers to `") as told:
        pickled.convert(archive(tmp_path / "y.pt", b"\x80\x02" + module))
    assert str(told.value).isprintable()
