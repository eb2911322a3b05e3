"""`revisit eval` in a process that a test starts, and ends."""

from forked import die
from revisit.commands import eval as command
from revisit.commands.engines.transformers import StockCaptioner


def evaluate_and_die_at_the_second_batch(argv: list[str]) -> int:
    """The command with these arguments, but killed before its second batch is captioned."""
    answer, batches = StockCaptioner.answer, []

    def dying(self, images, questions):
        batches.append(len(images))
        if len(batches) == 2:
            die()
        return answer(self, images, questions)

    StockCaptioner.answer = dying
    return command.main(argv)
