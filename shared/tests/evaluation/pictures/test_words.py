import pytest

from revisit.core.trace import TraceStep
from revisit.evaluation.pictures.words import join

PIECES = [" A", " fris", "bee", ".", " It", "'s", " a lot", "\n\n", "red", "<end>"]


def decode(tokens):
    return "".join("" if PIECES[token] == "<end>" else PIECES[token] for token in tokens)


def step(token, plain=None, refined=None):
    plain = token if plain is None else plain
    refined = token if refined is None else refined
    return TraceStep(7, 4, None, None, 3, 0.1, plain, refined, token)


def joined(tokens, decode=decode, **changed):
    steps = [step(token, **changed.get(f"at{place}", {})) for place, token in enumerate(tokens)]
    return join(tokens, steps, decode)


def test_pieces_become_words_and_marks_stand_alone():
    words = joined([0, 1, 2, 3, 4, 5])
    assert [word.text for word in words] == ["A", "frisbee", ".", "It's"]
    assert [word.before for word in words] == [" ", " ", "", " "]
    assert [[token.text for token in word.tokens] for word in words] == [
        [" A"],
        [" fris", "bee"],
        ["."],
        [" It", "'s"],
    ]


def test_a_token_of_two_words_belongs_to_both_and_an_end_to_none():
    words = joined([6, 7, 8, 9])
    assert [word.text for word in words] == ["a", "lot", "red"]
    assert words[0].tokens == words[1].tokens
    assert words[2].before == "\n\n"
    assert [token.text for token in words[2].tokens] == ["red"]


def test_a_letter_in_several_tokens_keeps_them_all():
    whole = "né 🐕".encode()

    def by_bytes(tokens):
        return bytes(whole[token] for token in tokens).decode(errors="replace")

    words = joined(list(range(len(whole))), by_bytes)
    assert [word.text for word in words] == ["né", "🐕"]
    assert [len(word.tokens) for word in words] == [3, 4]  # the space is of neither


def test_a_changed_word_has_the_word_of_greedy_decoding():
    words = joined([0, 1, 2], at1={"plain": 8})
    assert [word.instead for word in words] == ["", "red"]
    assert [token.instead for token in words[1].tokens] == ["red", None]
    assert joined([0], at0={"plain": 9})[0].tokens[0].instead == "(the end)"


def test_a_sampled_token_is_no_change_of_revisit():
    (same_as_greedy,) = joined([0], at0={"plain": 0, "refined": 1})
    (by_the_draw,) = joined([0], at0={"plain": 1, "refined": 1})
    assert not same_as_greedy.instead and not by_the_draw.instead


def test_a_trace_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 tokens and 1 steps"):
        join([0, 1], [None], decode)
