"""Ask the application."""

from app import create_app

with create_app().test_client() as client:
    answer = client.get("/late").get_json()
print(f"{sum(answer['late'].values()):,} late departures, by {answer['by']}")
