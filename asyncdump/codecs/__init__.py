"""Compression: how content becomes frames, and how it is read back.

A codec compresses content in independent frames. A seek table at the end of the file lists them, so that any part of
the content can be read, and several threads can compress and decompress.

- `codec`: the protocol of a codec, and the values that say how a file is compressed
- `zstd`, `lz4`, `registry`: the codecs, and which one a name, a suffix, a record or the first bytes of a file mean
- `compressors`: the compressors that all files of a run share
- `seekable`, `detect`, `frames`: the seek table, the check of its entries, and single frames
- `content`: the content of a compressed dump as a file object
"""
