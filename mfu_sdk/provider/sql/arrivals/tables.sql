-- Where requests are taken apart: $wire takes a group's bytes and keeps nothing, $spans holds a row for each span until
-- the group is stored. They live in memory alone. The columns of $wire are the fields of traces.proto by their paths,
-- an array for each repeated message around them; a member of a oneof is NULL unless it is set. Each level and each
-- name costs: the engine plans the view anew for every group.
CREATE DATABASE IF NOT EXISTS arrivals ENGINE = Memory;

CREATE TABLE $wire ($columns) ENGINE = Null;

-- flaw: what the row is rejected for, by its number in arrivals.FLAWS; 0 for nothing.
-- fits: whether the row says all that the span said. Where it does not, Python reads the request.
CREATE TABLE $spans (
    number             UInt32,
    tenant             String,
    flaw               UInt8,
    fits               UInt8,
    start_unix_ns      UInt64,
    TraceId            String,
    SpanId             String,
    ParentSpanId       String,
    TraceState         String,
    SpanName           LowCardinality(String),
    SpanKind           LowCardinality(String),
    ServiceName        LowCardinality(String),
    ResourceAttributes Map(LowCardinality(String), String),
    ScopeName          String,
    ScopeVersion       String,
    SpanAttributes     Map(LowCardinality(String), String),
    Duration           UInt64,
    StatusCode         LowCardinality(String),
    StatusMessage      String
) ENGINE = Memory;

CREATE MATERIALIZED VIEW $view TO $spans AS
WITH $texts(span) AS span_texts
SELECT
    number,
    tenant,
    multiIf(
        length(span_trace_id) != 16 OR span_trace_id = unhex('00000000000000000000000000000000'), 1,
        length(span_span_id) != 8 OR span_span_id = unhex('0000000000000000'), 2,
        span_end < span_start, 3,
        0) AS flaw,
    resource_fits AND empty(span_events) AND empty(span_links) AND length(span_parent_id) <= 8
        AND length(span_name) <= $name AND length(scope_name) <= $name AND length(scope_version) <= $name
        AND length(span_message) <= $value AND length(span_state) <= $value
        AND isValidUTF8(concat(span_name, ' ', span_state, ' ', span_message, ' ', scope_name, ' ', scope_version))
        AND $fits(span) AS fits,
    span_start AS start_unix_ns,
    lower(hex(span_trace_id)) AS TraceId,
    lower(hex(span_span_id)) AS SpanId,
    lower(hex(span_parent_id)) AS ParentSpanId,
    span_state AS TraceState,
    span_name AS SpanName,
    transform(span_kind, [1, 2, 3, 4, 5], ['Internal', 'Server', 'Client', 'Producer', 'Consumer'], 'Unspecified')
        AS SpanKind,
    service AS ServiceName,
    resource AS ResourceAttributes,
    scope_name AS ScopeName,
    scope_version AS ScopeVersion,
    CAST(mapFromArrays(span_key, span_texts), 'Map(LowCardinality(String), String)') AS SpanAttributes,
    span_end - span_start AS Duration,
    transform(span_code, [1, 2], ['Ok', 'Error'], 'Unset') AS StatusCode,
    span_message AS StatusMessage
FROM (
    SELECT
        number,
        tenant,
        $texts(resource) AS resource_texts,
        mapFromArrays(resource_key, resource_texts) AS said,
        -- Whatever the client said of its tenant is overwritten: the credential is the only witness.
        CAST(mapConcat(mapFilter((key, text) -> key != 'mfu.tenant.id', said), map('mfu.tenant.id', tenant)),
            'Map(LowCardinality(String), String)') AS resource,
        said['service.name'] AS service,
        $fits(resource) AS resource_fits,
        scope_name,
        scope_version,
        $in_span
    FROM (SELECT $named FROM $wire)
)
ARRAY JOIN $in_span;
