"""Which words name which objects: the lexicon of COCO, lemmas, and what images show."""
