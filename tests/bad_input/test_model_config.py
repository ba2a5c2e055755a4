"""A model's config.json that is damaged, odd, of a decoder, or names code to run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner import inspect, models
from runner.models import Model
from runner.system.errors import UserError
from tests.conftest import NO_DATA, Refused, save_small_model

QA = "AutoModelForQuestionAnswering"
row = pytest.mark.bad_input


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked on stdin"))


def written(folder: Path, without: str | None = None, **changes: Any) -> Path:
    """Rewrite config.json with other settings."""
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if name != without}))
    return folder


def check(folder: Path) -> None:
    """What a run does with a model before data are read."""
    checkpoint = models.find(str(folder), "model.path", Model(str(folder)))
    models.skeleton(QA, checkpoint.config)
    models.check_weights(QA, checkpoint)


def refusal(folder: Path) -> str:
    """The message with which a run refuses a model before data are read: one line that names the folder."""
    with pytest.raises(UserError) as caught:
        check(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    assert len(text) < len(str(folder)) + 330
    return text


# --- files that are no configuration ----------------------------------------------------------------------------

FILES = {
    "a list": ("[]", "holds a list"),
    "a text": ('"bert"', "holds a text"),
    "null": ("null", "holds null"),
    "a number": ("3", "holds a number"),
    "empty": ("", "is empty"),
    "blank": (" \n", "is empty"),
    "cut off": ('{"model_type": "be', "is not valid JSON (Unterminated string"),
    "a web page": ("<html>404</html>", "is a web page"),
    "a git-LFS pointer": ("version https://git-lfs.github.com/spec/v1\nsize 3\n", "git lfs pull"),
    "not UTF-8": (b"\x80\xff\x00", "is not valid JSON"),
    "nested 100,000 times": ('{"model_type": "bert", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "not valid JSON"),
}


@pytest.mark.parametrize(("content", "words"), [
    pytest.param(*values, id=name, marks=row("C1", f"config.json: {name}",
        before="a traceback, or no word of what it is", after="what it is, and the remedy"))
    for name, values in FILES.items()
])  # fmt: skip
def test_a_file_that_is_no_configuration(content: str | bytes, words: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    text = refusal(folder)
    assert text.startswith(f"model.path={folder}: its config.json ")
    assert words in text
    with pytest.raises(UserError, match=r"its config\.json"):
        inspect.inspect(folder)


def test_a_byte_order_mark_is_read(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")
    check(folder)


# --- settings ---------------------------------------------------------------------------------------------------

NAN = float("nan")
SETTINGS = [
    ("hidden_size", "32", ['sets hidden_size="32", not a whole number', "correct it"]),
    ("hidden_size", None, ["sets hidden_size=null, not a whole number"]),
    ("hidden_size", 32.0, ["sets hidden_size=32.0, not a whole number"]),
    ("hidden_size", [32], ["sets hidden_size=[32], not a whole number"]),
    ("hidden_size", 0, ["sets hidden_size=0, not from 1"]),
    ("hidden_size", -32, ["sets hidden_size=-32, not from 1"]),
    ("hidden_size", 10**12, ["sets hidden_size=1000000000000, not from 1 to 16,777,216"]),
    ("hidden_size", 31, ["hidden size (31) is not a multiple of the number of attention heads (2)", "correct it"]),
    ("num_attention_heads", 3, ["(32) is not a multiple of the number of attention heads (3)"]),
    ("num_attention_heads", 0, ["sets num_attention_heads=0, not from 1"]),
    ("num_attention_heads", -1, ["sets num_attention_heads=-1, not from 1"]),
    ("num_hidden_layers", 0, ["sets num_hidden_layers=0, not from 1"]),
    ("num_hidden_layers", -1, ["sets num_hidden_layers=-1, not from 1"]),
    ("num_hidden_layers", 10**9, ["sets num_hidden_layers=1000000000, not from 1 to 512"]),
    ("num_hidden_layers", True, ["sets num_hidden_layers=true, not a whole number"]),
    ("intermediate_size", -5, ["sets intermediate_size=-5"]),
    ("vocab_size", 10**10, ["sets vocab_size=10000000000, not from 1 to 16,777,216"]),
    ("vocab_size", 16_000_000, ["word_embeddings.weight is [604, 32] in its weights and [16000000, 32]"]),
    ("vocab_size", 5, ["word_embeddings.weight is [604, 32] in its weights and [5, 32] by its config.json"]),
    ("max_position_embeddings", -1, ["negative dimension -1"]),
    ("hidden_act", "nope", ["hidden_act=nope is unknown"]),
    ("hidden_act", 3, ["sets hidden_act=3, not a text"]),
    ("hidden_dropout_prob", 2, ["between 0 and 1, but got 2"]),
    ("hidden_dropout_prob", "0.1", ['sets hidden_dropout_prob="0.1", not a number']),
    ("hidden_dropout_prob", NAN, ["sets hidden_dropout_prob=nan, not a finite number"]),
    ("layer_norm_eps", NAN, ["sets layer_norm_eps=nan, not a finite number"]),
    ("layer_norm_eps", float("inf"), ["sets layer_norm_eps=inf, not a finite number"]),
    ("rope_parameters", {"factor": NAN}, ["sets rope_parameters=nan, not a finite number"]),
    ("pad_token_id", 999_999, ["Padding_idx"]),
    ("use_cache", "no", ['sets use_cache="no", not true or false']),
    ("id2label", [1, 2], ["sets id2label=[1, 2], which is refused ("]),
    ("id2label", {"a": "b"}, ['sets id2label={"a": "b"}, which is refused (']),
    ("num_labels", "x", ['sets num_labels="x", which is refused (']),
    ("dtype", "nope", ['sets dtype="nope", which is refused (']),
    ("model_type", 3, ["does not know the architecture 3 (model_type)", "such as bert, roberta"]),
    ("model_type", ["bert"], ["does not know the architecture ['bert']"]),
    ("model_type", "../bert", ["does not know the architecture '../bert'", "never run"]),
    ("model_type", None, ["names no architecture; set model.model_type"]),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}, ["weights are quantized"]),
    ("quantization_config", "x", ["weights are quantized"]),
    ("projected_head", "x", ["transformers builds no bert from its config.json"]),
    ("projected_head", {}, ["transformers builds no bert from its config.json"]),
    ("to_dict", 1, ["sets to_dict, which is no setting: remove it"]),
    ("__class__", "x", ["sets __class__, which is no setting"]),
    ("attribute_map", {}, ["sets attribute_map, which is no setting"]),
]


@pytest.mark.parametrize(("name", "value", "words"), [
    pytest.param(name, value, words, id=f"{name}={value}"[:60], marks=row("C1", f"config.json: {name}={value}"[:80],
        before="a traceback, another reason, or accepted", after=words[0]))
    for name, value, words in SETTINGS
])  # fmt: skip
def test_an_odd_setting(name: str, value: Any, words: list[str], folder: Path) -> None:
    text = refusal(written(folder, **{name: value}))
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(("name", "words"), [
    ("vocab_size", "[604, 32] in its weights and [30522, 32] by its config.json"),
    ("hidden_size", "is [32] in its weights and [768] by its config.json"),
    ("num_hidden_layers", "160 of the encoder's 197 weights are missing"),
    ("model_type", "names no architecture; set model.model_type"),
])  # fmt: skip
@row("C1", "config.json without a setting", before="another reason", after="what does not fit")
def test_a_missing_setting(name: str, words: str, folder: Path) -> None:
    assert words in refusal(written(folder, without=name, num_attention_heads=2))


@row("C1", "config.json without the number of heads", before="12 heads without a word", after="one warning")
def test_a_missing_number_of_heads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_small_model(tmp_path / "m", hidden_size=48)
    models.find(str(folder), "model.path", Model(str(folder)))
    assert caplog.messages == []
    models.find(str(written(folder, without="num_attention_heads")), "model.path", Model(str(folder)))
    assert caplog.messages == [f"model.path={folder}: its config.json does not say num_attention_heads: 12 is assumed"]


@row("C1", "hidden_size=31 on the command line", before="no ForQuestionAnswering model", after="the two sizes")
def test_command_line(folder: Path, refused: Refused) -> None:
    text = refused("model=hub", f"model.path={written(folder, hidden_size=31)}", f"dataset.path={NO_DATA}")
    assert "The hidden size (31) is not a multiple of the number of attention heads (2)" in text


# --- decoders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "words"), [
    pytest.param(changes, words, id=str(changes), marks=row("C1", f"config.json: {changes}",
        before="no encoder apart from its head, or trained", after=f"{words}; encoders that work"))
    for changes, words in (
        *(({"model_type": kind}, "a decoder") for kind in ("gpt2", "llama", "qwen2", "opt")),
        *(({"model_type": kind}, "an encoder with a decoder") for kind in ("t5", "bart", "mbart")),
        ({"is_decoder": True}, "used as a decoder"),
        ({"add_cross_attention": True}, "used as a decoder"),
        ({"is_encoder_decoder": True}, "an encoder with a decoder"),
    )
])  # fmt: skip
def test_decoders_are_refused_from_their_configuration(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr("runner.models.checkpoint._pretrained", lambda *_: pytest.fail("weights were read"))
    text = refusal(written(tmp_path, **{"model_type": "bert", **changes}))
    assert words in text
    assert "only encoders are pruned here, such as bert, roberta, electra" in text


def test_encoders_and_xlnet_are_not_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("{}")
    for kind in ("bert", "roberta", "xlm-roberta", "electra", "deberta-v2", "distilbert", "albert", "mpnet",
                 "modernbert", "mobilebert", "xlnet", "funnel", "longformer", "canine", "splinter"):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        assert models.find(str(tmp_path), "model.path", Model(str(tmp_path))).config.model_type == kind


# --- code that comes with a model -------------------------------------------------------------------------------

CODE = {"AutoConfig": "code.C", "AutoModel": "code.M", QA: "owner/name--code.M", "AutoTokenizer": ["code.T", "code.T"]}


@pytest.fixture
def with_code(folder: Path) -> Path:
    """A model with code that fails the test if it is run."""
    (folder / "code.py").write_text("raise SystemExit('the code was run')")
    return written(folder, auto_map=CODE, custom_pipelines={"x": {"impl": "code.P"}})


@row("B2", "auto_map of a known architecture", before="written into our model", after="not read, not saved")
def test_code_of_a_known_architecture(with_code: Path, tmp_path: Path) -> None:
    file = with_code / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": CODE}))
    checkpoint = models.find(str(with_code), "model.path", Model(str(with_code)))
    models.check_weights(QA, checkpoint)
    models.load(QA, checkpoint).save_pretrained(tmp_path / "ours")
    models.load_tokenizer(checkpoint).save_pretrained(tmp_path / "ours")
    read = {file.name: file.read_text() for file in (tmp_path / "ours").glob("*.json")}
    assert read.keys() >= {"config.json", "tokenizer_config.json"}
    assert [name for name, text in read.items() if "auto_map" in text or "code." in text] == []
    assert inspect.inspect(with_code).layers


@pytest.mark.parametrize("ask", ["find", "inspect"])
@row("B2", "auto_map of an architecture that transformers does not have", before="run after a y", after="refused")
def test_code_of_an_unknown_architecture(ask: str, with_code: Path) -> None:
    written(with_code, model_type="their-own")
    read: dict[str, Callable[[], object]] = {
        "find": lambda: models.find(str(with_code), "model.path", Model(str(with_code))),
        "inspect": lambda: inspect.inspect(with_code),
    }
    with pytest.raises(UserError, match="code that comes with a model is never run"):
        read[ask]()


@row("B2", "auto_map where transformers has no such head", before="run after a y on stdin", after="no such model")
def test_code_where_transformers_has_no_head(with_code: Path) -> None:
    written(with_code, model_type="vit")  # an encoder, of pictures
    checkpoint = models.find(str(with_code), "model.path", Model(str(with_code)))
    with pytest.raises(UserError, match="the architecture vit has no ForQuestionAnswering model"):
        models.skeleton(QA, checkpoint.config)
    with pytest.raises(UserError, match=r"model\.path="):
        models.load(QA, checkpoint)


@row("B2", "a tokenizer that is code", before="run after a y on stdin", after="refused")
def test_a_tokenizer_that_is_code(with_code: Path) -> None:
    (with_code / "tokenizer.json").unlink()
    values = {"auto_map": CODE, "tokenizer_class": "TheirOwn"}
    (with_code / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"model\.path="):
        models.load_tokenizer(models.find(str(with_code), "model.path", Model(str(with_code))))


@row("B2", "attn_implementation of a kernel on the hub", before="downloaded and run if kernels is installed",
     after="not read")  # fmt: skip
def test_a_kernel_of_a_stranger(folder: Path) -> None:
    written(folder, attn_implementation="owner/kernel", _attn_implementation="owner/kernel", return_dict=False)
    config = models.find(str(folder), "model.path", Model(str(folder))).config
    assert "owner" not in str(models.skeleton(QA, config).config._attn_implementation)
    assert config.return_dict


def test_no_call_of_ours_trusts_code() -> None:
    """Every call of an auto class says so, or takes a configuration that names no code."""
    root = Path(models.__file__).parents[1]
    texts = {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in root.rglob("*.py")}
    assert len(texts) > 80
    calls = {name: re.findall(r"\w+\.from_(?:pretrained|config)\b", text) for name, text in texts.items()}
    assert {name: found for name, found in calls.items() if found} == {
        "models/heads.py": ["auto.from_pretrained", "auto.from_config", "cls.from_pretrained"],  # given False
        "models/tokenizer.py": ["AutoTokenizer.from_pretrained"],  # given False
        "inspect.py": ["kind.from_config"],  # of a configuration that names no code
        "speed/measure.py": ["kind.from_pretrained"],  # given False
        "exports/card.py": ["AutoTokenizer.from_pretrained"] * 4,  # lines for people
    }
    assert [name for name, text in texts.items() if "trust_remote_code=True" in text] == []
