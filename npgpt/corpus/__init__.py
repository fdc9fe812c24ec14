"""From a text somewhere to tokens on the disk.

sources.py      what --data may name: a recipe, a file, a folder, tokens
remote.py       a data set on a server, a file at a time
download.py     one file from a server, resumed and checked; network.py, the requests for it
parquet.py      documents out of .parquet
prepare.py      text, tokenizer, tokens: everything that comes before training
tokenizing.py   documents to token ids, on several threads
token_writer.py token ids to a file that is whole or not there
token_files.py  .bin and .npy: how they are read, and what is wrong with them

Batches are cut from the files that come out of here by npgpt/data.py.
"""
