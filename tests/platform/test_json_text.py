"""JSON of others: a value that can be written and shown, or a ValueError."""

import json

import pytest

from pelagos.infra.json_text import parse_json


@pytest.mark.parametrize("half", ["\ud800", "\ude00\ud83d"])
def test_half_of_a_character_is_refused_however_it_is_written(half: str) -> None:
    value = {"cause": f"a{half}b", half: [half]}
    escaped = json.dumps(value)
    plain = json.dumps(value, ensure_ascii=False)
    for content in (escaped, escaped.upper().replace("\\U", "\\u"), escaped.encode()):
        with pytest.raises(ValueError, match="half of a character"):
            parse_json(content)
    for content in (plain, plain.encode(errors="surrogatepass")):
        with pytest.raises(ValueError, match="half of a character"):
            parse_json(content)


@pytest.mark.parametrize("text", ["\U0001f600", "한국어", "\\ud800", "u\\\\ud83d", "plain"])
def test_whole_characters_are_read(text: str) -> None:
    for content in (json.dumps([text]), json.dumps([text], ensure_ascii=False)):
        assert parse_json(content) == [text]
        assert parse_json(content.encode()) == [text]
