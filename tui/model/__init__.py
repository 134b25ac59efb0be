"""What the screens show, as values: the session, its view, loads, series, figures."""
