"""Finding support clips: the corpus embeddings, the index over them, the choice of supports."""
