"""What is fitted, on train rows only: vocabularies, statistics, tokenizer."""
