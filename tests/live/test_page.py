"""The page in headless Chromium: what a person does with it, and what a hostile model cannot do."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import Page, browser, installed
from support.openai_server import Server, delta, openai_server
from support.served import served

import glmrun
from glmrun.server.guard import Access
from glmrun.server.service import Options

pytestmark = pytest.mark.skipif(installed() is None, reason="there is no Chromium")
MESSAGES = "[...document.querySelectorAll('#messages article')]"
DONE = "!running && document.querySelector('#status').textContent"
SHIFT = 8


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def server() -> Iterator[Server]:
    with openai_server() as running:
        yield running


@pytest.fixture
def page(chromium: Page, server: Server) -> Iterator[Page]:
    """The page of a new server, whose origin has kept nothing; a test that leaves an error behind fails."""
    chromium.errors.clear()
    chromium.dialogs.clear()
    chromium.size(1000, 700)
    opened(chromium, server)
    yield chromium
    assert chromium.errors == []


def opened(page: Page, server: Server) -> None:
    page.open(server.url.removesuffix("v1"))
    page.wait("server.model")


def ask(page: Page, text: str) -> str:
    """Type a message and wait for the end of its answer; returns what the page says of it."""
    page.run("document.querySelector('#text').focus()")
    page.type(text)
    page.press("Enter")
    page.wait("running || $('status').textContent")
    said: str = page.wait(DONE)
    return said


def texts(page: Page, part: str = ".body") -> list[str]:
    """The texts of all messages, as far as they are seen."""
    found: list[str] = page.run(f"{MESSAGES}.map((each) => each.querySelector({part!r})?.innerText ?? '')")
    return found


def click(page: Page, label: str, at: int = -1) -> None:
    page.run(f"[...document.querySelectorAll('button')].filter((b) => (b.ariaLabel ?? b.innerText) === {label!r}).at({at}).click()")


def test_an_answer_comes_and_is_kept(page: Page, server: Server) -> None:
    assert page.run("document.querySelector('#model').innerText") == "zai-org/GLM-4.7-Flash"
    assert ask(page, "hello") == "The answer is there"
    assert texts(page) == ["hello", "Hello\u2028 there 🙂"]
    assert page.run("[document.querySelector('details').open, document.querySelector('details div').textContent]") == [
        False, "Let me think.",
    ]  # fmt: skip
    assert "7 tokens" in texts(page, "footer")[1] and "prompt 11, 4 known" in texts(page, "footer")[1]
    assert page.run("document.querySelector('#used').innerText") == "18 of 4,096 tokens"
    assert server.requests[0] == {
        "model": "zai-org/GLM-4.7-Flash", "messages": [{"role": "user", "content": "hello"}],
        "stream": True, "stream_options": {"include_usage": True}, "return_progress": True,
    }  # fmt: skip
    ask(page, "more")
    assert server.requests[1]["messages"][1:] == [
        {"role": "assistant", "content": "Hello\u2028 there 🙂", "reasoning_content": "Let me think."},
        {"role": "user", "content": "more"},
    ]
    opened(page, server)
    assert texts(page) == []
    click(page, "hello", 0)
    assert texts(page) == ["hello", "Hello\u2028 there 🙂", "more", "You said: more"]


def test_several_conversations(page: Page, server: Server) -> None:
    ask(page, "one")
    click(page, "New conversation")
    ask(page, "two")
    assert [request["messages"] for request in server.requests] == [[{"role": "user", "content": said}] for said in ("one", "two")]
    listed = "[...document.querySelectorAll('#list li button:first-child')].map((b) => b.innerText)"
    assert page.run(listed) == ["two", "one"]
    click(page, "Remove: one")
    assert page.dialogs == ["Remove “one”?"] and page.run(listed) == ["two"] and texts(page) == ["two", "You said: two"]
    opened(page, server)
    assert page.run(listed) == ["two"]


def test_stop_regenerate_and_edit(page: Page, server: Server) -> None:
    page.type("slow")
    page.press("Enter")
    page.wait("running && running.message.content.length > 20")
    assert page.run("[$('send').hidden, $('stop').hidden]") == [True, False]
    page.press("Escape")
    assert page.wait(DONE) == "Stopped" and server.left.wait(10)
    assert "stopped" in texts(page, "footer")[1] and texts(page)[1].startswith("tick tick")
    page.press("ArrowUp")  # the message box is empty: the last message is edited
    page.wait("document.activeElement.ariaLabel === 'Edit the message'")
    page.press("Enter", SHIFT)
    page.type("x")
    page.run("document.activeElement.value = 'hello'")
    page.press("Enter")
    page.wait("running || $('status').textContent === 'The answer is there'")
    page.wait(DONE)
    assert texts(page) == ["hello", "Hello\u2028 there 🙂"]
    server.scripts["hello"] = [delta(content="Another one."), delta("stop")]
    click(page, "Regenerate")
    page.wait(DONE)
    assert texts(page) == ["hello", "Another one."]
    assert [request["messages"][-1]["content"] for request in server.requests] == ["slow", "hello", "hello"]
    assert [len(request["messages"]) for request in server.requests] == [1, 1, 1] and not page.dialogs
    page.type("and more")
    page.press("Enter")
    page.wait(DONE)
    assert len(texts(page)) == 4
    click(page, "Regenerate", 0)  # of the first answer: the question and the answer behind it would be gone without a word
    page.wait(DONE)
    assert len(page.dialogs) == 1 and "What follows" in page.dialogs[0] and texts(page) == ["hello", "Another one."]


def test_settings_reach_the_server(page: Page, server: Server) -> None:
    click(page, "Settings")
    page.run("""
        const { elements } = $("settings-form");
        Object.assign(elements.system, { value: "Be short." });
        Object.assign(elements.temperature, { value: "0.5" });
        Object.assign(elements.max_tokens, { value: "9" });
        Object.assign(elements.theme, { value: "dark" });
        elements.thinking.checked = false;
    """)
    click(page, "Save")
    page.wait("document.documentElement.dataset.theme === 'dark'")
    opened(page, server)
    assert page.run("document.documentElement.dataset.theme") == "dark"
    ask(page, "hello")
    asked = server.requests[0]
    assert asked["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}]
    assert (asked["temperature"], asked["max_tokens"]) == (0.5, 9)
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}


def code(language: str, text: str) -> str:
    button = '<button type="button" aria-label="Copy the code">Copy</button>'
    return f'<div class="code"><div><span>{language}</span>{button}</div><pre tabindex="0"><code>{text}</code></pre></div>'


def link(label: str, target: str) -> str:
    return f'<a href="{target}" target="_blank" rel="noopener noreferrer" title="{target}">{label}</a>'


MARKDOWN = [
    ("a *b* **c** ***d*** ~~e~~ `f*g*`",
     "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <del>e</del> <code>f*g*</code></p>"),
    ("snake_case_name 2 * 3 * 4 \\*x\\* **open", "<p>snake_case_name 2 * 3 * 4 *x* **open</p>"),
    ("# A `b`\n## C #\ntext\nmore", "<h1>A <code>b</code></h1><h2>C</h2><p>text<br>more</p>"),
    ("- a\n  - b\n- c\n\n3. d\n   ```py\n   x = 1\n   ```\n4. e",
     f'<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul><ol start="3"><li>d{code("py", "x = 1")}</li><li>e</li></ol>'),
    ("> a\n> > b\n\n---", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><hr>"),
    ("| a | b |\n|---|:-:|\n| 1 \\| 2 | `c` |\n",
     '<div class="table"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
     "<tbody><tr><td>1 | 2</td><td><code>c</code></td></tr></tbody></table></div>"),
    ("~~~~\n```\n<b>\n~~~~\nend", code("", "```\n&lt;b&gt;") + "<p>end</p>"),
    ("```html\n<script>", code("html", "&lt;script&gt;")),
    ("see [it](https://a.example/x_(y)) and https://b.example/c?d=1.",
     f'<p>see {link("<span>it</span>", "https://a.example/x_(y)")} and {link(*["https://b.example/c?d=1"] * 2)}.</p>'),
    ("![pic](https://a.example/p.png)", f'<p>{link("<span>pic</span>", "https://a.example/p.png")}</p>'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "nodes"), MARKDOWN, ids=range(len(MARKDOWN)))
def test_markdown(page: Page, text: str, nodes: str) -> None:
    shown = f"(() => {{ const node = make('div'); renderMarkdown(node, {json.dumps(text)}); return node.innerHTML; }})()"
    assert page.run(shown) == nodes


def test_a_text_is_the_same_however_it_comes(page: Page) -> None:
    text = "\n\n".join(each for each, _ in MARKDOWN)
    same = page.run(f"""(() => {{
        const text = {json.dumps(text)}, whole = make("div"), grown = make("div");
        renderMarkdown(whole, text);
        for (let n = 1; n <= text.length; n += 1) renderMarkdown(grown, text.slice(0, n));
        return [whole.innerHTML === grown.innerHTML, whole.childNodes.length];
    }})()""")
    assert same == [True, 13]


EVIL = [
    "<script>window.hit = 1</script>", "<img src=x onerror='window.hit = 1'>", "<svg onload=window.hit=1>",
    "[a](javascript:window.hit=1)", "[b](JaVaScRiPt:window.hit=1)", "[c]( java\tscript:window.hit=1)", "<javascript:window.hit=1>",
    "[d](data:text/html,<script>window.hit=1</script>)", "[e](vbscript:x)", "![f](x onerror=window.hit=1)", "[g](//evil.example)",
    '[h](https://good.example/" onmouseover="window.hit=1)', "<a href='javascript:window.hit=1'>i</a>", "[j](file:///etc/passwd)",
    "`</code><script>window.hit = 1</script>`",
    '```"><script>window.hit = 1</script>\n</code></pre><img src=x onerror=window.hit=1>\n```',
    "| <img src=x onerror=window.hit=1> | b |\n|---|---|\n| <script>window.hit=1</script> | [k](javascript:window.hit=1) |",
    "# <iframe src=javascript:window.hit=1>", "> <form action=javascript:window.hit=1><button>go",
    "</div></article></main><h1>gone</h1>", "\u202e\u2066 \x00 \x1b[31m", "<style>*{display:none}</style>",
    "<base href=https://evil.example>", "<meta http-equiv=refresh content=0>",
]  # fmt: skip
ALLOWED = {
    "P", "H1", "UL", "OL", "LI", "BLOCKQUOTE", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "DIV", "PRE", "CODE", "SPAN", "A", "BR",
    "STRONG", "EM", "DEL", "HR", "BUTTON",
}  # fmt: skip


def test_a_hostile_answer_stays_text(page: Page, server: Server) -> None:
    text = "\n\n".join(EVIL)
    pieces = [delta(content=text[i : i + 7]) for i in range(0, len(text), 7)]
    server.scripts["evil"] = [delta(reasoning_content=text), *pieces, delta("stop")]
    server.models = [{"id": "<img src=x onerror=window.hit=1>"}]
    opened(page, server)
    ask(page, "evil")
    found = page.run("[...document.querySelectorAll('#messages .body *')].map((n) => [n.tagName, n.getAttributeNames().join()])")
    assert {tag for tag, _ in found} <= ALLOWED
    assert not [names for _, names in found if "style" in names or any(name.startswith("on") for name in names.split(","))]
    links = page.run("[...document.querySelectorAll('#messages a')].map((a) => [a.protocol, a.rel, a.target])")
    assert links == 2 * [["https:", "noopener noreferrer", "_blank"]]  # [h], and the address in <base>
    page.run("[...document.querySelectorAll('#messages details')].forEach((each) => (each.open = true))")
    page.run("[...document.querySelectorAll('#messages .body *')].forEach((n) => n.dispatchEvent(new Event('mouseover')))")
    assert page.run("window.hit") is None and page.run("document.querySelectorAll('script, iframe, img, form').length") == 3
    assert "<script>window.hit = 1</script>" in texts(page)[1] and "</div></article></main><h1>gone</h1>" in texts(page)[1]
    opened(page, server)  # from what the browser kept
    click(page, "evil", 0)
    assert page.run("window.hit") is None and page.run("document.querySelectorAll('script, iframe, img, form').length") == 3


def test_the_policy_holds_where_the_page_would_not(page: Page) -> None:
    assert (
        page.run("(() => { try { document.body.innerHTML = '<b>x</b>'; return 'taken'; } catch { return 'refused'; } })()")
        == "refused"
    )
    page.run("document.body.append(Object.assign(document.createElement('img'), { src: 'https://evil.example/x' }))")
    page.run("new Promise((done) => fetch('https://evil.example/').then(done, done)).then(() => 0)")
    page.wait("true")
    refused = [error for error in page.errors if "Content Security Policy" in error]
    assert len(refused) >= 2
    page.errors.clear()


N = 100_000
HUGE = {
    "one line": "x" * N, "stars": "*a " * N, "openers": "[" * N, "links": "[a](" * N, "ticks": "` `` " * N, "quotes": ">" * N,
    "deep list": "\n".join("  " * i + "- x" for i in range(400)), "rows": "|a" * N + "\n" + "|-" * N + "|", "hashes": "# " * N,
    "underscores": "_" * N, "breaks": "\n" * N, "fences": "```\n" * N, "angles": "<" * N, "rules": "- " * N, "tildes": "~~a" * N,
    "short openers": ("[" * 19_000 + "\n\n") * 5, "short stars": ("*a" * 9_000 + "\n\n") * 5,
    "links in links": "[a](https://x.example " * N,
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_answer_ends(page: Page, name: str) -> None:
    """Time that grows with the square of these texts is longer than the browser's driver waits."""
    length = page.run(
        f"(() => {{ const node = make('div'); renderMarkdown(node, {json.dumps(HUGE[name])}); return node.textContent.length; }})()"
    )
    assert length <= len(HUGE[name]) + 10 * HUGE[name].count("```")  # a block of code says Copy
    assert length > 0 or not HUGE[name].strip("\n-> #|")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cut", "The server stopped in the middle of the answer."), ("error", "The server: out of"),
        ("gone", "The server answers 404: The model"), ("too long", "The server answers 400: This model's maximum context length"),
        ("junk", "The server sends what is no answer."), ("torn", "The server can't be reached."),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said(page: Page, server: Server, text: str, words: str) -> None:
    said = ask(page, text)
    assert said.startswith(words) and texts(page, ".error")[1] == said.replace("\n", " ")
    page.errors[:] = [error for error in page.errors if "status of 40" not in error and "ERR_" not in error]
    server.scripts[text] = [delta(content="Now it goes."), delta("stop")]
    if text in ("cut", "error", "torn", "junk"):
        assert ask(page, "hello") == "The answer is there"
        assert [message["role"] for message in server.requests[-1]["messages"]][-1] == "user"


def test_nano_behind_our_own_server(chromium: Page) -> None:
    question = [{"role": "user", "content": "What is 17 + 25?"}]
    access = Access(key="secret")
    with glmrun.load(n_ctx=1024) as model, served(model, Options(access=access)) as server:
        expected = list(model.chat(question, temperature=0.0))
        chromium.open(server.url)
        chromium.wait("$('notice').textContent.startsWith('The server wants a key')")
        chromium.run("sessionStorage.setItem('glmrun.key', 'secret'); settings.temperature = '0'; void findModel()")
        chromium.wait("server.model")
        chromium.errors.clear()  # the refusal for the missing key
        assert ask(chromium, question[0]["content"]) == "The answer is there"
        assert texts(chromium)[1] == "".join(chunk.text for chunk in expected)
        thought: str = chromium.run("document.querySelector('details div').textContent")
        assert thought == "".join(chunk.reasoning for chunk in expected)
        stats = expected[-1].stats
        assert f"{stats.n_generated} tokens" in texts(chromium, "footer")[1]
        used = chromium.run("document.querySelector('#used').innerText")
        assert used == f"{stats.n_prompt + stats.n_generated} of 1,024 tokens" and chromium.errors == []


def test_how_far_a_prompt_is_read_is_seen(page: Page, server: Server) -> None:
    progress = {"choices": [{"delta": {}}], "prompt_progress": {"total": 2000, "cache": 0, "processed": 500, "time_ms": 9}}
    server.scripts["long"] = [progress, {"error": {"message": "enough"}}]
    page.run("""(() => {
        const took = Taken.prototype.add;
        Taken.prototype.add = function (event) {
            took.call(this, event);
            paint(this.message);
            (window.seen ??= []).push(nodeOf.get(this.message).querySelector(".waiting").textContent);
        };
    })()""")
    assert ask(page, "long") == "The server: enough"
    assert page.run("window.seen") == ["Reading the prompt: 25 % of 2,000 tokens"]


def test_a_server_with_a_key(chromium: Page) -> None:
    with openai_server(key="secret") as server:
        chromium.open(server.url.removesuffix("v1"))
        chromium.wait("$('notice').textContent.startsWith('The server wants a key: see Settings.')")
        click(chromium, "Settings")
        chromium.run("void ($('settings-form').elements.key.value = 'secret')")
        click(chromium, "Save")
        chromium.wait("server.model")
        assert ask(chromium, "hello") == "The answer is there"
        assert chromium.run("Object.values(localStorage).join().includes('secret')") is False


@pytest.mark.parametrize(("width", "dark"), [(320, False), (320, True), (700, False), (1600, True)])
def test_every_width_and_both_colours(page: Page, server: Server, width: int, dark: bool) -> None:
    long = "w" * 3000
    server.scripts["wide"] = [delta(content=f"{long}\n\n```\n{long}\n```\n\n| a | {long} |\n|---|---|\n| b | c |"), delta("stop")]
    page.size(width, 600, dark)
    ask(page, "wide")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("$('messages').scrollWidth <= $('scroll').clientWidth")
    light = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part > 127)")
    assert light is not dark
    narrow = width < 736
    assert page.run("getComputedStyle($('menu')).display !== 'none'") is narrow
    if narrow:
        assert page.run("getComputedStyle($('side')).visibility") == "hidden"
        click(page, "Conversations")
        page.wait("getComputedStyle($('side')).visibility === 'visible' && document.activeElement === $('new')")
        page.press("Escape")
        page.wait("getComputedStyle($('side')).visibility === 'hidden'")


def test_all_of_it_has_a_name_and_is_reached_by_tab(page: Page) -> None:
    ask(page, "```\nx\n```")
    click(page, "Settings")
    for inside in ("dialog", "main"):
        nodes: list[dict[str, Any]] = page.call("Accessibility.getFullAXTree")["nodes"]
        wanted = [
            node
            for node in nodes
            if node.get("role", {}).get("value") in ("button", "textbox", "checkbox", "combobox", "spinbutton")
        ]
        assert len(wanted) >= (7 if inside == "dialog" else 9)
        assert [node for node in wanted if not node.get("name", {}).get("value", "").strip()] == []
        page.press("Escape")
        page.wait("!$('settings').open")
    page.run("document.activeElement.blur()")
    reached = set()
    for _ in range(16):
        page.press("Tab")
        reached.add(
            page.run("document.activeElement.ariaLabel || document.activeElement.textContent.trim() || document.activeElement.id")
        )
    assert {"New conversation", "Settings", "Messages", "text", "Send", "Edit", "Regenerate", "Copy", "Copy the code"} <= reached
