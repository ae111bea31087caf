from comity.agent import Agent as Agent
from comity.client import Client as Client
from comity.client import Task as Task
from comity.config import Settings as Settings
from comity.connect import connect as connect
from comity.errors import ComityError as ComityError
from comity.errors import Refuse as Refuse
from comity.errors import TaskFailed as TaskFailed
from comity.handles import Attempt as Attempt
from comity.message import Message as Message
from comity.model.capability import Requirements as Requirements
from comity.model.capability import Retry as Retry
from comity.model.capability import Strategy as Strategy
from comity.model.envelope import Envelope as Envelope
from comity.model.envelope import Performative as Performative
from comity.model.files import FileRef as FileRef
from comity.model.parts import Break as Break
from comity.model.parts import Final as Final

__version__: str
__all__: list[str]
