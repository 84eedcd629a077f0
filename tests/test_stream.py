"""What the model writes, row by row: thinking, answer and tool calls, however the text is cut into pieces.

Rows marked with a number are those of the edge-case table this parser was built from.
"""

import copy
import json
import random

import pytest
from test_tokenizer import tokenizer

from glmrun.chat.request import ChatRequest
from glmrun.chat.stream import ChatStream, Delta
from glmrun.chat.template import ChatFormat
from glmrun.chat.tool_call import typed_value


def tool(name: str, required: tuple[str, ...] = (), **properties: dict) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STRING, NUMBER, INTEGER, BOOLEAN = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))
TOOLS = [
    tool("get_current_date"),
    tool("get_weather", ("city",), city=STRING, days=INTEGER, exact={"anyOf": [STRING, {"type": "null"}]}),
    tool("write", ("path", "text"), path=STRING, text=STRING),
    tool("f"),
    tool("g", x=NUMBER),
    tool("获取天气", 城市=STRING),
]


def call(name: str, *pairs: tuple[str, str], end: str = "</tool_call>") -> str:
    return f"<tool_call>{name}" + "".join(f"<arg_key>{k}</arg_key><arg_value>{v}</arg_value>" for k, v in pairs) + end


def written(text: str, path: str = "a") -> list:
    return [("write", {"path": path, "text": text})]


def write(text: str, path: str = "a") -> str:
    return call("write", ("path", path), ("text", text))


WEATHER = call("get_weather", ("city", "Beijing"))
BEIJING = ("get_weather", {"city": "Beijing"})
BONN = [("get_weather", {"city": "Bonn"})]
DATE = ("get_current_date", {})
F = ("f", {})

# name: (thinking, what the model writes, answer, thinking, calls)
ROWS = {
    "a name in quotes": (False, call('"get_weather"', ("city", "Bonn")), "", "", BONN),
    "a name in capitals": (False, call("Get-Weather", ("city", "Bonn")), "", "", BONN),
    "a name with a namespace": (False, call("functions.get_weather", ("city", "Bonn")), "", "", BONN),
    "a name in JSON, in quotes": (False, '<tool_call>{"name": "`F`", "arguments": {}}</tool_call>', "", "", [F]),
    "01 plain text": (False, "This is a plain response.", "This is a plain response.", "", []),
    "02 call without arguments": (False, "<tool_call>get_current_date</tool_call>", "", "", [DATE]),
    "03 newline after the name": (False, "<tool_call>get_current_date\n</tool_call>", "", "", [DATE]),
    "04 one argument": (False, WEATHER, "", "", [BEIJING]),
    "05 newlines between all tags": (False, WEATHER.replace("><", ">\n<").replace("er<", "er\n<"), "", "", [BEIJING]),
    "06 text before": (False, "Checking." + WEATHER, "Checking.", "", [BEIJING]),
    "07 white space before": (False, "  \n  " + WEATHER, "", "", [BEIJING]),
    "08 two calls": (False, WEATHER + call("f"), "", "", [BEIJING, F]),
    "08 text between and after calls": (False, "A " + call("f") + "B\n" + WEATHER + "\nC", "A B\n\nC", "", [F, BEIJING]),
    "09 thinking, then a call": (True, "Let me read.</think>" + call("f"), "", "Let me read.", [F]),
    "10 call ends thinking": (True, "I should look.\n" + WEATHER, "", "I should look.", [BEIJING]),
    "10 call ends thinking, then an answer": (True, "Look." + call("f") + "Done", "Done", "Look.", [F]),
    "11 no thinking": (True, "</think>Plain answer", "Plain answer", "", []),
    "12 cut off while thinking": (True, "Still thin", "", "Still thin", []),
    "13 stray end of thinking": (False, "</think>Answer", "Answer", "", []),
    "13 stray end within": (False, "Half</think> whole", "Half whole", "", []),
    "13 twice": (True, "r</think></think>a", "a", "r", []),
    "14 opened again": (True, "<think>x</think>y", "y", "x", []),
    "14 opened again after a newline": (True, "\n<think>\nx\n</think>\n\ny\n", "y\n", "x", []),
    "14 thinking although it should not": (False, "<think>x</think>y", "y", "x", []),
    "14 thinks again before the answer": (True, "a</think>\n<think>b</think>c", "c", "a\nb", []),
    "14 the word in the answer": (False, "The <think> tag", "The <think> tag", "", []),
    "14 the word in the thinking": (True, "The <think> tag</think>a", "a", "The <think> tag", []),
    "15 indentation": (False, write("    code    "), "", "", written("    code    ")),
    "15 newlines in a value": (False, write("\nx\n"), "", "", written("\nx\n")),
    "21 union in pieces": (False, call("get_weather", ("exact", "Smith")), "", "", [("get_weather", {"exact": "Smith"})]),
    "22 object last": (False, call("h", ("o", '{"k": 1}')), "", "", [("h", {"o": {"k": 1}})]),
    "23 no XML": (
        False, write("a<b & &lt; <![CDATA[x]]> && echo 'd'", "<>&<>&"),
        "", "", written("a<b & &lt; <![CDATA[x]]> && echo 'd'", "<>&<>&")),
    "24 quotes and newlines": (False, write('say "hi"\nok'), "", "", written('say "hi"\nok')),
    "25 backslashes": (False, write(r"\C|\.", r"C:\Users\test"), "", "", written(r"\C|\.", r"C:\Users\test")),
    "28 unicode": (False, call("获取天气", ("城市", "北京🙂")), "", "", [("获取天气", {"城市": "北京🙂"})]),
    "29 key twice": (False, call("get_weather", ("city", "A"), ("city", "B")), "", "", [("get_weather", {"city": "A"})]),
    "30 almost tags": (
        True, "a </th b <thin </think>c <tool fake </arg_val <tool_cal", "c <tool fake </arg_val <tool_cal", "a </th b <thin", []),
    "31 everything at once": (True, "r</think>a" + WEATHER + call("f"), "a", "r", [BEIJING, F]),
    "32 name in pieces": (True, "Look.</think>" + call("get_weather", ("city", "Bonn")), "", "Look.", BONN),
    "33 a long value": (False, write("0123456789\n" * 400), "", "", written("0123456789\n" * 400)),
    "34 comparison signs": (False, "a < b and c > d. done <", "a < b and c > d. done <", "", []),
    "35 phantom, then a call": (True, "I will issue a <tool_call>" + WEATHER, "", "I will issue a", [BEIJING]),
    "35 phantom in prose": (True, "Use <tool_call> here.</think>ok", "ok", "Use <tool_call> here.", []),
    "35 phantom before the end of thinking": (True, "Use <tool_call></think>ok", "ok", "Use", []),
    "35 phantom word before a call": (False, "x <tool_call>now" + WEATHER, "x <tool_call>now", "", [BEIJING]),
    "35 lone tag": (False, "a <tool_call>", "a", "", []),
    "35 only a closing tag": (False, "a</tool_call> b", "a b", "", []),
    "36 empty call": (False, "<tool_call></tool_call>", "", "", []),
    "36 blank call": (False, "<tool_call>   ", "", "", []),
    "37 no </arg_value> before the next key": (
        False, "<tool_call>write<arg_key>path</arg_key><arg_value>a\n<arg_key>text</arg_key><arg_value>b</arg_value></tool_call>",
        "", "", written("b")),
    "37 no </arg_value> at the end": (
        False, "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Bonn</tool_call>", "", "", BONN),
    "37 no <arg_value>": (
        False, "<tool_call>get_weather<arg_key>city</arg_key>Bonn</arg_value></tool_call>", "", "", BONN),
    "37 no </arg_key>": (
        False, "<tool_call>get_weather<arg_key>city<arg_value>Bonn</arg_value></tool_call>", "", "", BONN),
    "37 no <arg_key>": (
        False, "<tool_call>get_weather\ncity</arg_key><arg_value>Bonn</arg_value></tool_call>", "", "", BONN),
    "37 no second <arg_key>": (
        False, "<tool_call>write<arg_key>path</arg_key><arg_value>a</arg_value>text</arg_key><arg_value>b</arg_value></tool_call>",
        "", "", written("b")),
    "37 key without value": (False, "<tool_call>f<arg_key>k</arg_key></tool_call>", "", "", [F]),
    "37 no </tool_call> before the next call": (
        False, call("get_weather", ("city", "Beijing"), end="\n") + call("f"), "", "", [BEIJING, F]),
    "37 value that speaks of tags": (
        False, write("use <arg_key>k</arg_key> and <tool_call> or </think>"),
        "", "", written("use <arg_key>k</arg_key> and <tool_call> or </think>")),
    "37 key glued to the name": (
        False, "<tool_call>get_weathercity</arg_key><arg_value>Bonn</arg_value></tool_call>", "", "", BONN),
    "37 key behind a blank": (
        False, "<tool_call>get_weather city</arg_key><arg_value>Bonn</arg_value></tool_call>", "", "", BONN),
    "37 wrong closing tag": (
        False, "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Bonn</arg_key></tool_call>", "", "", BONN),
    "37 two calls, no </arg_value>": (
        False, "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Bonn</tool_call>" + WEATHER, "", "", [*BONN, BEIJING]),
    "data: a closing tag": (
        False, write("use </arg_value> in docs", "b </arg_value>c"),
        "", "", written("use </arg_value> in docs", "b </arg_value>c")),
    "data: the end of a call": (False, write("x </tool_call> y") + "z", "z", "", written("x </tool_call> y")),
    "data: a whole call": (True, write("see " + WEATHER) + WEATHER, "", "", [*written("see " + WEATHER), BEIJING]),
    "data: a call in a call": (
        False, write(write("see " + WEATHER + ".") + call("f")),
        "", "", written(write("see " + WEATHER + ".") + call("f"))),
    "data: a pair": (
        False, write("<arg_key>text</arg_key><arg_value>v</arg_value> x"), "", "",
        written("<arg_key>text</arg_key><arg_value>v</arg_value> x")),
    "thinking goes on behind a call": (True, "a" + call("f") + "b" + call("f") + "c</think>d", "d", "abc", [F, F]),
    "38 only </tool_call> missing": (False, call("get_weather", ("city", "Beijing"), end="\n"), "", "", [BEIJING]),
    "38 closing tag cut": (False, call("get_weather", ("city", "Beijing"), end="</tool_"), "", "", [BEIJING]),
    "38 value cut": (False, "a<tool_call>get_weather<arg_key>city</arg_key><arg_value>Bei", "a", "", []),
    "38 required argument missing": (False, call("write", ("path", "a"), end=""), "", "", []),
    "38 unknown function cut": (False, call("h", ("a", "1"), end=""), "", "", []),
    "38 without arguments": (False, "<tool_call>get_current_date", "", "", [DATE]),
    "38 name cut": (False, "<tool_call>get_", "", "", []),
    "39 newline after the call": (False, WEATHER + "\n", "", "", [BEIJING]),
    "40 JSON": (False, '<tool_call>{"name": "f", "arguments": {"a": [1]}}</tool_call>', "", "", [("f", {"a": [1]})]),
    "40 JSON with arguments as a string": (
        False, '<tool_call>\n{"name":"f","arguments":"{\\"a\\": 1}"}\n</tool_call>', "", "", [("f", {"a": 1})]),
    "40 name and JSON": (False, '<tool_call>f {"a": "b"}</tool_call>', "", "", [("f", {"a": "b"})]),
    "40 JSON that is none": (False, "<tool_call>{name: f</tool_call> b", "{name: f b", "", []),
    "40 JSON with the tags of calls": (
        False, '<tool_call>{"name": "write", "arguments": {"text": "a</tool_call><arg_key>b"}}</tool_call>c',
        "c", "", [("write", {"text": "a</tool_call><arg_key>b"})]),
    "40 JSON that is none, then a call": (False, "<tool_call>{name: f</tool_call>" + WEATHER, "{name: f", "", [BEIJING]),
    "damaged: <arg_value> moved before </arg_key>, then thinking": (
        True, "a<tool_call>get_weather<arg_key>city<arg_value></arg_key>Bonn</arg_value></tool_call>b</think>c", "c", "ab", BONN),
    "damaged: </tool_call> moved before </arg_value>": (
        False, "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Bonn</tool_call></arg_value>", "", "", BONN),
    "damaged: slashes missing": (
        False, "<tool_call>get_weather<arg_key>city<arg_key><arg_value>Bonn<arg_value></tool_call>", "", "", BONN),
    "damaged: the name said, its call empty": (False, "f<tool_call></tool_call>", "f", "", [F]),
    "damaged: no name": (
        False, "<tool_call></arg_key>nothing<arg_key>path</arg_value>of<arg_key>ours</tool_call>", "nothing path of ours", "", []),
    "damaged: an undeclared name that is a declared one and a key": (
        False, "<tool_call>get_weathercity</arg_key>Bonn</arg_value></tool_call>", "", "", BONN),
    "damaged: a required argument in a value": (
        False, "<tool_call>write<arg_key>path</arg_key><arg_value>a<arg_key>text</arg_key><arg_value>b</arg_value></tool_call>",
        "", "", written("b")),
    "blank lines before the answer": (True, "\n r \n</think>\n\n    code\n", "    code\n", " r", []),
    "paragraphs": (False, "One.\n\nTwo.\n", "One.\n\nTwo.\n", "", []),
    "nothing": (True, "", "", "", []),
    "only white space": (False, " \n ", "", "", []),
}  # fmt: skip


def collected(deltas: list[Delta]) -> tuple[str, str, list]:
    calls = [each for delta in deltas for each in delta.tool_calls or ()]
    assert all(each["type"] == "function" and each["id"].startswith("call_") for each in calls)
    assert len({each["id"] for each in calls}) == len(calls)
    named = [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in calls]
    return "".join(delta.text for delta in deltas), "".join(delta.reasoning for delta in deltas), named


def fed(pieces: list[str], thinking: bool, tools: list | None = TOOLS) -> tuple[str, str, list]:
    stream = ChatStream(tokenizer(), thinking, tools)
    return collected([*(stream.feed(piece) for piece in pieces), stream.finish()])


def splits(text: str) -> list[list[str]]:
    """The whole text, every cut in two, single characters, and a few random cuts."""
    chance = random.Random(len(text))
    cuts = [[], *([i] for i in range(1, len(text))), list(range(1, len(text)))]
    cuts += [sorted(chance.sample(range(1, len(text)), len(text) // 5)) for _ in range(5) if len(text) > 5]
    return [[text[a:b] for a, b in zip([0, *cut], [*cut, len(text)], strict=True)] for cut in cuts]


@pytest.mark.parametrize("name", ROWS)
def test_row_in_every_cut(name):
    thinking, output, text, reasoning, calls = ROWS[name]
    for pieces in splits(output) if len(output) < 999 else ([output], list(output), [output[:40], output[40:]]):
        assert fed(pieces, thinking) == (text, reasoning, calls), pieces


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if len(row[1]) < 999])
def test_row_in_every_split(name):
    """By induction: from wherever single characters have led, a piece leads to where its characters would have.

    Pieces longer than the longest tag and its neighbours are those of test_row_in_every_cut.
    """
    thinking, output, *_ = ROWS[name]
    walker = ChatStream(None, thinking, TOOLS)
    states, said = [copied(walker)], [walker.feed("")]
    for character in output:
        said.append(walker.feed(character))
        states.append(copied(walker))
    for i in range(len(output)):
        for j in range(i + 2, min(i + 15, len(output)) + 1):
            stream = copied(states[i])
            assert collected([stream.feed(output[i:j])]) == collected(said[i + 1 : j + 1]), output[i:j]
            assert situation(stream) == situation(states[j]), output[i:j]


def copied(stream):
    """A stream in the same state, with nothing that is changed in common."""
    other = copy.copy(stream)
    other._texts = {name: copy.copy(part) for name, part in stream._texts.items()}
    for part in other._texts.values():
        part._ready = part._ready.copy()
    other._calls, other._body, other._between = stream._calls.copy(), copy.deepcopy(stream._body), stream._between.copy()
    return other


def situation(stream):
    """All that decides how a stream goes on."""
    parts = [(part.begun, part._space, part._ends_with_call, part._ready) for part in stream._texts.values()]
    body = {
        name: "".join(value) if name in ("_pieces", "_since", "_value") else value for name, value in vars(stream._body).items()
    }
    inside = (body, stream._before_call) if stream.state == "call" else ()
    return stream._state, stream._held, parts, inside, "".join(stream._between), stream._calls


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("special", [True, False], ids=["tags are tokens", "tags are spelled"])
def test_row_as_tokens(name, special):
    thinking, output, *expected = ROWS[name]
    stream = ChatStream(tokenizer(), thinking, TOOLS)
    deltas = [stream.push(i) for i in tokenizer().encode(output, special=special)]
    assert collected([*deltas, stream.finish()]) == tuple(expected)


def test_without_declared_tools_the_tags_are_text():
    output = "See <tool_call>f</tool_call>."
    assert fed([output], False, None) == (output, "", [])
    assert fed([output + "</think>x"], True, []) == ("x", output, [])


def test_only_what_the_model_writes_is_looked_at():
    """41, 42: tags in earlier messages neither end the thinking nor call anything; as tokens they are plain text."""
    form = ChatFormat(None, tokenizer())
    asked = "Write </think> and <tool_call>f</tool_call>"
    history = [
        {"role": "user", "content": asked},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "r",
            "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "</tool_response><tool_call>"},
    ]
    ids = form.encode(ChatRequest(history, TOOLS))
    ids = ids[ids.index(tokenizer().id_of("<|user|>")) :]
    tags = [tokenizer().text_of(i) for i in ids if tokenizer().text_of(i) in ("<think>", "</think>", "<tool_call>", "</tool_call>")]
    assert tags == ["<think>", "</think>", "<tool_call>", "</tool_call>", "<think>"]  # the template's own
    stream = ChatStream(tokenizer(), True, TOOLS)
    assert stream.state == "thinking"
    assert collected([*(stream.push(i) for i in tokenizer().encode("still", special=True)), stream.finish()]) == ("", "still", [])


def test_text_is_given_out_as_soon_as_it_cannot_be_a_tag():
    stream = ChatStream(tokenizer(), True, TOOLS)
    seen = [stream.feed(piece) for piece in ("Hm", "m </", "th", "ing> ", "ok</thi", "nk>", "A", " B <to", "ol> C")]
    assert [delta.reasoning for delta in seen] == ["Hm", "m", "", " </thing>", " ok", "", "", "", ""]
    assert [delta.text for delta in seen] == ["", "", "", "", "", "", "A", " B", " <tool> C"]


def test_prose_after_a_tag_is_not_held_back():
    stream = ChatStream(tokenizer(), False, TOOLS)
    assert stream.feed("The tag <tool_call> begins a").text == "The tag <tool_call> begins a"


def test_a_call_is_given_out_when_it_is_closed():
    stream = ChatStream(tokenizer(), False, TOOLS)
    assert stream.feed(WEATHER[:-1]).tool_calls is None
    assert stream.feed(">").tool_calls is not None
    assert stream.finish() == Delta()


def test_control_tokens_never_appear():
    words, stream = tokenizer(), ChatStream(tokenizer(), False)
    ids = words.encode("<|endoftext|>a<|user|><|observation|>b<|assistant|>[gMASK]", special=True)
    assert collected([*(stream.push(i) for i in ids), stream.finish()]) == ("ab", "", [])


def test_characters_spread_over_tokens_stay_whole():
    stream = ChatStream(tokenizer(), False)
    ids = tokenizer().encode("🙂€")
    deltas = [*(stream.push(i) for i in ids), stream.finish()]
    assert {delta.text for delta in deltas} <= {"", "🙂", "€"}
    cut = ChatStream(tokenizer(), False)
    assert collected([*(cut.push(i) for i in ids[:-1]), cut.finish()]) == ("🙂\ufffd", "", [])


NULLABLE = {"type": ["string", "null"]}
OBJECT, ARRAY, ANYTHING = {"type": "object"}, {"type": "array"}, {}
ROOT = {"$defs": {"n": INTEGER, "loop": {"$ref": "#/$defs/loop"}}}


@pytest.mark.parametrize(
    ("raw", "schema", "value"),
    [
        ("123", STRING, "123"),  # 16
        ("123", NUMBER, 123),
        ('"42"', NUMBER, 42),
        ("1.5", NUMBER, 1.5),
        ("1.5", INTEGER, "1.5"),
        (" 7\n", INTEGER, 7),
        ("7.0", INTEGER, 7),
        ("True", BOOLEAN, True),
        ("false", BOOLEAN, False),
        ("1", BOOLEAN, "1"),
        ("true", NUMBER, "true"),
        ("123", ANYTHING, 123),  # 17
        ("-123", ANYTHING, -123),
        ("1.5", None, 1.5),
        ("true", ANYTHING, True),
        ("[1, 2]", ANYTHING, [1, 2]),
        ('{"k": 1}', ANYTHING, {"k": 1}),
        ("123abc", ANYTHING, "123abc"),  # 18
        ("123_456", STRING, "123_456"),  # 19
        ("123_456", INTEGER, "123_456"),
        ("NaN", ANYTHING, "NaN"),
        ("1e999", NUMBER, "1e999"),
        ("9" * 5000, INTEGER, "9" * 5000),
        ("null", STRING, "null"),  # 20
        ("null", NULLABLE, None),
        ("null", {"anyOf": [STRING, {"type": "null"}]}, None),
        ("null", {"type": "string", "nullable": True}, None),
        ("Null", NULLABLE, "Null"),
        ("5", {"type": ["string", "integer"]}, 5),
        ("007", {"type": ["string", "integer"]}, "007"),
        ("5", {"oneOf": [NUMBER, STRING]}, 5),
        ("5", {"anyOf": [STRING, {}]}, 5),
        ("5", {"enum": ["5", "6"]}, "5"),
        ("5", {"enum": [5, 6]}, 5),
        ("5", {"const": 5}, 5),
        ("5", {"$ref": "#/$defs/n"}, 5),
        ("x", {"$ref": "#/$defs/n"}, "x"),
        ("5", {"$ref": "#/$defs/loop"}, 5),
        ("5", {"$ref": "#/no/where"}, 5),
        ("5", {"allOf": [INTEGER]}, 5),
        (r"[{\"id\": \"1\"}]", ARRAY, [{"id": "1"}]),  # 26
        (r"{'pattern': '\d+'}", OBJECT, {"pattern": r"\d+"}),  # 27
        ("[1]", OBJECT, "[1]"),
        ("{1, 2}", OBJECT, "{1, 2}"),
        ("[" * 5000, ARRAY, "[" * 5000),
        ("-" * 5000 + "1", OBJECT, "-" * 5000 + "1"),
    ],
)
def test_values_become_what_the_schema_says(raw, schema, value):
    typed = typed_value(raw, schema, ROOT)
    assert typed == value
    assert type(typed) is type(value)


def test_arguments_are_spelled_without_escapes_unless_they_must_be():
    stream = ChatStream(tokenizer(), False, TOOLS)
    output = write("x", "é🙂") + call("h", ("a", r'"\ud800"'))
    arguments = [each["function"]["arguments"] for each in stream.feed(output).tool_calls]
    assert arguments == ['{"path": "é🙂", "text": "x"}', r'{"a": "\ud800"}']
