-- The traces of a group.
SELECT TraceId FROM $spans
