"""Named entities: tags, words and pieces, where they are read from, checks, scores, and text with marks."""
