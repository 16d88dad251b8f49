"""Language models: conversations from any source, chat templates, answers as labels, packing, generation."""
