"""`glmrun prompts`: what a person keeps to ask, and how."""

from glmrun.settings import personas_folder
from glmrun.terminal.sanitize import one_line
from glmrun.terminal.tables import columns


def list_prompts() -> None:
    """List the prompts and personas that you keep, and where.

    A prompt is a Markdown file NAME.md in the folder prompts beside the config file; {{key}} in it is a variable. A persona is a
    file NAME.toml in the folder personas: keys of the config file, such as system, temperature and think, and tools, a Python file.
    What is typed and variables beat a persona; it beats the config file.

    \b
    Examples:
      glmrun prompts
      glmrun run -T review language=Python -f main.py
      glmrun chat --persona tutor
    """
    from glmrun.store import prompts

    rows = [["prompt", name, text[:60]] for name, text in prompts.listed()]
    rows += [["persona", path.stem, ""] for path in sorted(personas_folder().glob("*.toml"))]
    if rows:
        print(columns([["kind", "name", "begins with"], *rows]) + "\n")
    print(f"prompts: {one_line(str(prompts.folder()))}/NAME.md\npersonas: {one_line(str(personas_folder()))}/NAME.toml")
