"""Text from elsewhere, such as a model server's log lines and answers, made fit for a line of our own log."""

from __future__ import annotations

import re

# Bytes of an answer that breaks the rules of HTTP that are logged, at DEBUG only.
LOGGED_BYTES = 200
# Colours and cursor movements of terminals (ECMA-48: CSI sequences).
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# The value after a name that says that it is secret, in the forms of command lines, JSON and Python's repr.
# No two parts next to each other match the same characters, so that the time grows with the text's length.
_NAMED_SECRET = re.compile(
    r"""
    (
      (?: api[-_]?key | (?<![a-z])token | (?-i:Token) | password | passwd | passphrase | authorization
        | (?:private|access)[-_]?key | secret(?:[-_]?(?:access[-_]?)?key)? )
      \\?["']?                               # the end of a quoted name, perhaps in a text within JSON
      (?: \s*[=:]\s* | \s+ )
      (?: \[\s* )?
      \\?["']?
      (?: (?:bearer|basic|token)\s+ )?
    )
    (?: (?<=\[["'])[^\]]+(?=["'])           # all of a list
      | (?<=")[^"\\]+ | (?<=')[^']+
      | [^\s"',;\]}\\]+ )
    """,
    re.IGNORECASE | re.VERBOSE,
)
# The name and password in a URL.
_OF_URL = re.compile(r"""(?<=://)[^\s/?#"'<>]+(?=@)""")
# The value of a parameter of a URL that is a key or a signature, as in presigned links.
_OF_QUERY = re.compile(
    r"""([?&](?:key|sig|signature|token|auth|x-(?:amz|goog)-(?:signature|credential|security-token))=)[^\s&#"'<>]+""",
    re.IGNORECASE,
)
# Secrets that are known by their form: tokens of Hugging Face, GitHub, GitLab, Slack and npm, keys of OpenAI
# and of those who copy it, of AWS and Google, and JSON web tokens.
_SECRET = re.compile(
    r"""
    \b(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|npm_|AKIA|ASIA|AIza|ya29\.)[A-Za-z0-9_-]{8,}
    | \b(eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?
    | (?i:(\bbearer[ ])\S+)
    """,
    re.VERBOSE,
)


def without_secret(text: str, secret: str) -> str:
    """Return `text` with *** in place of `secret`, unless that is ""."""
    return text.replace(secret, "***") if secret else text


def excerpt(text: str, limit: int) -> str:
    """Return `text` on one line: without secrets and control characters, and cut after `limit` characters."""
    text = _TERMINAL.sub("", text[: 16 * limit])
    text = _NAMED_SECRET.sub(r"\1***", text)
    text = _OF_URL.sub("***", text)
    text = _OF_QUERY.sub(r"\1***", text)
    text = _SECRET.sub(lambda found: f"{found[1] or found[2] or found[3]}***", text)
    text = " ".join(text.split())
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
