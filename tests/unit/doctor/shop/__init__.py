"""An application, as revisions import it."""


def SQLAlchemy():
    """Stands for Flask-SQLAlchemy's."""


db = SQLAlchemy()
