"""Names in our SQL (SPEC N2): statements are written with `packhorse.` and `platform.`, and run with what the
settings say.

So no statement of ours depends on the search_path of session, role or database, and any schema name works
that PostgreSQL takes.

PostgreSQL's own functions, and operators like `||` and `->>`, are qualified here as well. They are mostly
polymorphic (`count("any")`, `cardinality(anyarray)`), and a function of the same name that fits the arguments
better wins, wherever on the path it is: who may create in a schema of the caller's path could run code as the
worker. Files stay readable; what runs is exact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

SCHEMA, PLATFORM = "packhorse", "public"
#: Functions of PostgreSQL that our statements call; a test finds one that is missing. `extract`, `substring(…
#: from …)` and the like are syntax, which no path changes.
CATALOG_FUNCTIONS = frozenset(
    """
    abs acldefault aclexplode age array_agg array_fill array_length array_position array_remove array_to_string avg bit bool_and bool_or btrim
    cardinality ceil chr clock_timestamp concat_ws count current_database current_schemas current_setting currval date_part date_trunc
    floor format format_type gen_random_uuid generate_series has_any_column_privilege has_column_privilege has_schema_privilege has_sequence_privilege
    has_table_privilege hashtext isfinite json_agg json_build_object json_each_text json_to_recordset jsonb_agg jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_extract_path jsonb_extract_path_text
    jsonb_object_agg jsonb_object_keys
    jsonb_path_query jsonb_path_query_array jsonb_populate_record jsonb_strip_nulls
    jsonb_to_record jsonb_to_recordset jsonb_typeof lag left length ln lower lpad ltrim
    make_interval max md5 min nextval num_nonnulls num_nulls octet_length oidvectortypes parse_ident percentile_cont
    pg_advisory_xact_lock pg_backend_pid pg_current_xact_id
    pg_column_size pg_database_size pg_get_constraintdef pg_get_expr pg_get_function_result pg_get_indexdef pg_get_partkeydef
    pg_get_serial_sequence pg_get_triggerdef
    pg_has_role pg_indexes_size pg_is_in_recovery pg_notify pg_options_to_table pg_partition_tree pg_postmaster_start_time
    pg_relation_filenode pg_relation_size pg_size_pretty pg_sleep pg_stat_get_dead_tuples pg_stat_get_live_tuples pg_table_size pg_total_relation_size
    pg_stat_get_tuples_deleted pg_stat_get_tuples_inserted pg_stat_get_tuples_updated
    pg_try_advisory_xact_lock power quote_ident quote_literal random regexp_match regexp_replace regexp_split_to_array replace right round
    row_number row_security_active row_to_json set_config split_part starts_with statement_timestamp string_agg string_to_array
    strpos substr sum to_char to_date to_hex to_jsonb to_regclass to_regprocedure to_timestamp translate unnest
    """.split()  # noqa: SIM905
)
#: A text in quotes (its own quotes doubled), a comment, one of our qualifiers, a call or an operator of
#: PostgreSQL's own. Inside dollar quotes stands SQL.
_PART = re.compile(
    r"'(?:[^']|'')*'|--[^\n]*|\b(?:packhorse|platform)\.(?=[a-z%])|->>|->|\|\||@>|<@|&&|!~|~|@\?|(?<![\w.\"$%])(?:"
    + "|".join(sorted(CATALOG_FUNCTIONS))
    + r")(?=\()"
)
_QUALIFIER = re.compile(r"\b(packhorse|platform)\.(?=[a-z%])")


@dataclass(frozen=True)
class Names:
    """The schemas of a queue: its own, and that of the platform's tables."""

    schema: str = SCHEMA
    platform: str = PLATFORM

    def quoted(self, schema: str) -> str:
        """A name as an identifier in SQL."""
        return schema if schema in (SCHEMA, PLATFORM) else '"' + schema.replace('"', '""') + '"'

    def of(self, statement: str) -> str:
        """The same for a statement that comes again and again."""
        text = self._known.get(statement)
        if text is None:
            text = self._known[statement] = self.qualified(statement)
        return text

    def without_names(self, expression: str) -> str:
        """SQL: a text that is as we wrote it, whatever our schemas are called."""
        for name, qualifier in self._qualifiers.items():
            for written in dict.fromkeys((qualifier.replace("'", "''"), qualifier)):
                quoted = written.replace("'", "''")
                expression = f"replace({expression}, '{quoted}', '{name}.')"
        return expression

    @cached_property
    def _known(self) -> dict[str, str]:
        return {}

    @cached_property
    def _qualifiers(self) -> dict[str, str]:
        return {"packhorse": self.quoted(self.schema) + ".", "platform": self.quoted(self.platform) + "."}

    def qualified(self, text: str) -> str:
        """A text of ours with the names of these schemas."""
        return _PART.sub(self._part, text)

    def _part(self, match: re.Match[str]) -> str:
        part = match[0]
        if part.startswith("--"):
            return part
        if part.startswith("'"):
            return _QUALIFIER.sub(lambda found: self._qualifiers[found[1]].replace("'", "''"), part)
        if not part[0].isalpha():
            return f" operator(pg_catalog.{part}) "
        return self._qualifiers[part[:-1]] if part.endswith(".") else "pg_catalog." + part
