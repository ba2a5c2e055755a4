"""Every word of the demo's text: the vocabulary of its tokenizer."""

from runner.demo.text import OPENINGS, THEMES


def vocabulary() -> list[str]:
    """Every word and mark that can occur, lower case, sorted: the closed word list of the generator."""
    texts: list[str] = [*OPENINGS]
    for _, subjects, relations in THEMES:
        texts += subjects
        for relation in relations:
            texts += relation.values
            texts += (*relation.statements, *relation.value_questions, *relation.subject_questions)
    words = {word for text in texts for word in text.split() if word not in ("S", "V")}
    return sorted({word.lower() for word in words} | {".", ",", "?"})
