// What the rows of attention say of themselves, and where keys lie: for every kernel that attends.

// Nobody has looked at a row before: whether what it says can be so.
struct row_of_text {
    uint text, position, first, last, own;
    bool sound;
};

// `cached`: keys are counted by position, else by row; `rotates`: there is a table of angles.
inline row_of_text row_at(constant attention_args &args, device const int *rows, uint row, uint cached, uint rotates) {
    row_of_text at;
    at.text = cached != 0 ? uint(rows[row * ROW_FIELDS + ROW_SLOT]) : 0u;
    at.position = uint(rows[row * ROW_FIELDS + ROW_POSITION]);
    at.first = uint(rows[row * ROW_FIELDS + ROW_FIRST]);
    at.last = uint(rows[row * ROW_FIELDS + ROW_LAST]);
    at.own = cached != 0 ? at.position : row;
    const bool turns = rotates == 0 || at.position < args.positions;
    at.sound = at.text < args.texts && at.own < args.reach && turns && at.first <= at.last && at.last <= args.reach;
    return at;
}

// The place of a key's row of a head among those of its kind. Nobody has looked at the pages before either. `paged`: a
// text's keys lie in pages, else in one slot.
inline ulong place_of(constant attention_args &args, device const int *pages, uint text, uint head, uint key,
                      uint paged) {
    if (paged == 0) return (ulong(text) * args.kv_heads + head) * args.capacity + key;
    const uint slot = min(uint(pages[ulong(text) * args.pages + (key >> args.page_bits)]), args.slots - 1);
    return (ulong(slot) * args.kv_heads + head) * args.capacity + (key & (args.capacity - 1));
}
