"""How a stage's settings are read: command line, environment, .env, profile, config.py.

A stage derives its own class from the one that fits:

    Script                    no rows: settings and errors only
    Stage                     seed, limit, overwrite, strict: rows in, rows out
    WholeStage                the same of a stage that is not cut into shards
    ServerStage               may ask a server
    ChatStage                 shows a model here its chat template
    EngineStage               asks a model, here or at a server; greedy
    SamplingStage             the same, with temperature, top_p, top_k
    ModelStage                the same, with one model
    ReportingStage            may report its numbers elsewhere, too
    TrainingStage             trains a model
    PromptColumns             reads prompts of any format; PairColumns: preferences
    PreferenceStage           reads published preferences
    PreferenceTrainingStage   trains a model on them
"""

from prefpipe.settings.columns import PairColumns, PromptColumns
from prefpipe.settings.engines import (
    Account,
    EngineStage,
    ModelStage,
    SamplingStage,
    ServerStage,
    local_folders,
)
from prefpipe.settings.preference_input import PreferenceStage
from prefpipe.settings.reporting import ReportingStage
from prefpipe.settings.stage import NoEffectOnRows, Script, Stage, WholeStage
from prefpipe.settings.training import PreferenceTrainingStage, TrainingStage
