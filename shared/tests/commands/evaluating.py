"""`revisit-eval` as processes that tests start run it."""

import os
import signal

from revisit.commands import eval as command
from revisit.commands.stock import StockCaptioner


def evaluate(argv: list[str]) -> int:
    """The command with these arguments."""
    return command.main(argv)


def evaluate_and_die_at_the_second_batch(argv: list[str]) -> int:
    """The same, but killed before its second batch is captioned."""
    answer, batches = StockCaptioner.answer, []

    def dying(self, images, questions):
        batches.append(len(images))
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(self, images, questions)

    StockCaptioner.answer = dying
    return evaluate(argv)
