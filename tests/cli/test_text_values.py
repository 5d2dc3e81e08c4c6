"""An optional text is what the user wrote, whatever YAML would make of it."""

import json

import pytest

from cli.parser import make_parser

TEXTS = [
    "#### (.+)", "# You are brief.", "  # x", "{question}", "[a]", "a: b", "true", "1e3", "007", "- x", "---", "- ",
    "!x", "&a", "*a", "yes", "%", "@", "`", "|", ">", "? ", "'", '"', "a # b", "No", ".5", "2026-11-29", "\\boxed{}",
    "<<: x", "None",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_an_optional_text_stays_as_written(text, tmp_path):
    parser = make_parser(exit_on_error=False)
    parser.add_argument("--text", type=str | None)
    parser.add_argument("--texts", type=list[str] | None)
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"text": text, "texts": [text, "#"]}))
    parsed = parser.parse_args([f"--config={file}"])
    assert parsed.text == text and parsed.texts == [text, "#"]
    assert parser.parse_args([f"--text={text}"]).text == text


@pytest.mark.parametrize("word", ["null", "~", "Null"])
def test_null_is_none(word):
    parser = make_parser(exit_on_error=False)
    parser.add_argument("--text", type=str | None, default="x")
    assert parser.parse_args([f"--text={word}"]).text is None
