"""WeightFormat, and the layout that every packed format shares.

A matrix W (out_features N, in_features K) is one contiguous byte buffer. All values little-endian.

Dense formats (f32, f16, bf16): row-major, N * K elements. Nothing else.

Packed formats cut W into tiles of 16 rows (TILE_ROWS); N is padded to a multiple of 16 with rows
whose codes and scales are zero, K to a multiple of the format's column unit with codes whose weight
is zero. Tiles follow each other; a tile is a multiple of 64 bytes, so with a 64-byte-aligned buffer
every block load is aligned and one thread reads its tiles front to back.

Inside a tile, a block is 64 bytes: byte 4 * r + t belongs to row r (0..15) and sub-column t (0..3).

    int8     column unit 32    tile = blocks of 4 columns | 16 x f32 row scales (64 bytes)
             block b, byte 4r+t = int8 code of column 4b + t            w = scale[r] * code
    ternary  column unit 16    tile = blocks of 16 columns | 16 x f32 row scales (64 bytes)
             block b, byte 4r+t, bits 2i..2i+1 = code + 1 of column 16b + 4i + t, i = 0..3
             codes -1, 0, 1; field value 3 is never written            w = scale[r] * code
    int4_gG  column unit max(G, 32)   tile = group scales | blocks of 8 columns
             group scales: f16 [Kp / G][16], zero-padded at the end to a multiple of 64 bytes
             block b, byte 4r+t: low nibble = q of column 8b + t, high nibble = of column 8b + 4 + t
             q = 0..15                                                 w = scale[r, k // G] * (q - 8)
"""
