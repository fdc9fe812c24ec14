"""Other programs' files: the only place where their layouts and names appear.

llama2c.py    read the models and the tokenizers of llama2.c
"""
