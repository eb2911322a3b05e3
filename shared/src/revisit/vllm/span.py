"""Where the tokens of a request stand in a pass of the model."""

from typing import NamedTuple


class Span(NamedTuple):
    """Tokens of one request in a pass: they are computed side by side with other requests'."""

    request: str
    start: int  # the first one's place in the request
    begin: int  # its row in the hidden states of the pass
    length: int
