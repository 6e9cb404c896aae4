"""Functions that tests run in processes of their own."""

from dataclasses import dataclass

from gptladder.ladder.sandbox import messages
from gptladder.ladder.sandbox.processes import take_streams

RUN = f"{__name__}:run"


@dataclass(frozen=True)
class Program:
    """Python code to run; its variable ``result`` is the reply."""

    code: str


@dataclass(frozen=True)
class Result:
    """The reply."""

    text: str


def run() -> None:
    """Run one program and reply; then wait for the stream of requests to end."""
    requests, replies = take_streams()
    program = messages.read(requests, Program)
    variables: dict[str, object] = {"result": ""}
    exec(program.code, variables)
    messages.write(replies, Result(str(variables["result"])))
