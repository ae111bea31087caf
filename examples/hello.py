"""An agent in fifteen lines. Run it: comity run examples/hello.py"""

from comity import Agent, Attempt

agent = Agent("greeter", tags={"demo"})


@agent.capability
async def greet(attempt: Attempt, name: str, shout: bool = False) -> str:
    """Greet somebody by name."""
    attempt.progress(0.5, message=f"thinking about {name}")
    text = f"Hello, {name}!"
    return text.upper() if shout else text


@agent.on("ping")
def ping(body: str) -> str:
    return f"pong {body}"
