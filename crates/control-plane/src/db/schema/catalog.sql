-- A line about each part of the current schema. Parts of extensions do not count, and neither does
-- the table of the migrations.
WITH schema AS (
    SELECT oid FROM pg_namespace WHERE nspname = current_schema()
), extension AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
), relation AS (
    SELECT * FROM pg_class WHERE relnamespace IN (SELECT oid FROM schema)
        AND relkind NOT IN ('i', 'I', 'c', 't') AND relname <> '_sqlx_migrations'
        AND ('pg_class'::regclass, oid) NOT IN (SELECT classid, objid FROM extension)
)
SELECT format('relation %s (kind %s, persistence %s, row security %s %s)', relname, relkind,
        relpersistence, relrowsecurity, relforcerowsecurity)
    FROM relation
UNION ALL
SELECT format('column %s.%s %s', r.relname, a.attname, concat_ws(' ',
        format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attcollation <> t.typcollation THEN 'COLLATE ' || a.attcollation::regcollation END,
        CASE WHEN a.attnotnull THEN 'NOT NULL' END,
        'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
        'IDENTITY ' || nullif(a.attidentity::text, ''),
        'GENERATED ' || nullif(a.attgenerated::text, '')))
    FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE r.relkind <> 'S'
UNION ALL
SELECT format('sequence %s (%s, start %s, increment %s, from %s to %s, cycle %s)', r.relname,
        format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle)
    FROM relation r JOIN pg_sequence s ON s.seqrelid = r.oid
UNION ALL
SELECT format('constraint %s of %s: %s', c.conname, r.relname, pg_get_constraintdef(c.oid, true))
    FROM relation r JOIN pg_constraint c ON c.conrelid = r.oid
    -- Columns name their own `NOT NULL`, which newer servers keep as constraints too.
    WHERE c.contype NOT IN ('n', 't')
UNION ALL
SELECT format('index %s (valid %s)', pg_get_indexdef(i.indexrelid, 0, true), i.indisvalid)
    FROM relation r JOIN pg_index i ON i.indrelid = r.oid
UNION ALL
SELECT format('trigger %s (enabled %s)', pg_get_triggerdef(t.oid, true), t.tgenabled)
    FROM relation r JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL
-- Bodies are equal if they differ only in comments and spaces.
SELECT format('function %s(%s) (kind %s, returns %s, language %s, volatile %s, strict %s, '
        'security definer %s, leakproof %s, parallel %s, settings %s, body %s)', p.proname,
        pg_get_function_arguments(p.oid), p.prokind, pg_get_function_result(p.oid), l.lanname,
        p.provolatile, p.proisstrict, p.prosecdef, p.proleakproof, p.proparallel, p.proconfig,
        left(encode(sha256(convert_to(
            regexp_replace(p.prosrc, '(\s|--[^\n]*)+', ' ', 'g'), 'UTF8')), 'hex'), 16))
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
    WHERE p.pronamespace IN (SELECT oid FROM schema)
    AND ('pg_proc'::regclass, p.oid) NOT IN (SELECT classid, objid FROM extension)
UNION ALL
SELECT format('type %s (kind %s)', t.typname, t.typtype) FROM pg_type t
    LEFT JOIN pg_class c ON c.oid = t.typrelid
    WHERE t.typnamespace IN (SELECT oid FROM schema)
    AND (t.typtype IN ('d', 'e', 'r') OR c.relkind = 'c')
    AND ('pg_type'::regclass, t.oid) NOT IN (SELECT classid, objid FROM extension)
