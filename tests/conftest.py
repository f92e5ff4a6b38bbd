def pytest_terminal_summary(terminalreporter):
    "The time each notebook took; its test's own time would hold the wait for those before it."
    times = [(value, report.nodeid) for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])
             for name, value in report.user_properties if name == "seconds" and report.when == "call"]
    if not times: return
    terminalreporter.section("seconds per notebook")
    for value, name in sorted(times, reverse=True): terminalreporter.write_line(f"{value:7.1f}  {name}")
