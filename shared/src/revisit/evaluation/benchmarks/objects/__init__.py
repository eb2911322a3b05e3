"""Objects in captions and images: the lexicon of COCO, lemmas, annotations."""
