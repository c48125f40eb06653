"""Flights that left New York, and how punctual the carriers are."""

import os

import backfill
import sqlalchemy as sa
from flask import Flask
from flask_migrate import Migrate

from departures.models import Flight, db


def create_app():
    app = Flask(__name__)
    url = os.environ.get("DATABASE_URL", "sqlite:///departures.sqlite3")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)
    Migrate(app, db, render_as_batch=True)  # SQLite alters no column otherwise

    @app.get("/late")
    def late():
        """Late departures of each carrier, by the new column as soon as it is filled."""
        is_filled = backfill.is_complete(db.session, "fill_punctuality")
        is_late = Flight.punctuality == "late" if is_filled else Flight.dep_delay > 15
        count = sa.select(Flight.carrier, sa.func.count()).where(is_late).group_by(Flight.carrier)
        found = dict(map(tuple, db.session.execute(count)))
        return {"by": "punctuality" if is_filled else "dep_delay", "late": found}

    return app
