"""Schedules and maintenance: triggers, timetable, configuration, retention, partitions, their commands (SPEC
M).
"""
