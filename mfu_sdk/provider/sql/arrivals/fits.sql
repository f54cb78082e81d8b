-- Whether the texts $1_texts say all of the attributes of $1: each name once and valid, each value of a kind that
-- texts.sql writes (an array of integers, or of strings that JSON writes as they are), nothing beyond the limits.
(
    length($1_key) <= $count
    AND arrayUniq($1_key) = length($1_key)
    AND isValidUTF8(arrayStringConcat($1_key, ' '))
    AND isValidUTF8(arrayStringConcat($1_texts, ' '))
    AND length(arrayStringConcat($1_texts)) <= $value
    AND arrayAll(
        (key, text, real, whole, truth, raw, map, items, numbers) ->
            length(key) <= $name
            AND isNotNull(text) + isNotNull(real) + isNotNull(whole) + isNotNull(truth) + isNotNull(raw)
                + 2 * isNotNull(map) + notEmpty(items) = 1
            AND (empty(items) OR NOT has(numbers, NULL) OR match(toString(items), $safe)),
        $1_key, $1_text, $1_real, $1_whole, $1_truth, $1_raw, $1_map, $1_item_text, $1_item_whole)
)
