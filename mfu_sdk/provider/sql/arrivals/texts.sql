-- The values of the attributes of $1 as texts, as receive/otlp.py writes them.
arrayMap(
    (text, real, whole, truth, raw, items, numbers) -> multiIf(
        isNotNull(text), assumeNotNull(text),
        isNotNull(real), toString(assumeNotNull(real)),
        isNotNull(whole), toString(assumeNotNull(whole)),
        isNotNull(truth), if(assumeNotNull(truth), 'true', 'false'),
        isNotNull(raw), base64Encode(assumeNotNull(raw)),
        has(numbers, NULL), replaceAll(toString(items), '\'', '"'),
        toString(numbers)),
    $1_text, $1_real, $1_whole, $1_truth, $1_raw, $1_item_text, $1_item_whole)
