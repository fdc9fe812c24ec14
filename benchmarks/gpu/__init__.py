"""Everything that is claimed about npgpt on a GPU, measured by one command: see __main__.py."""
