"""MLflow as we use it: runs of jobs, the pair of models they leave, and a server of our own where there is none.

    tracking   TrainingRun: what rank 0 of a job records
    pairs      PairRegistry: register, list, resolve, promote, roll back
    folders    what a model folder holds, checked without loading it
    server     an embedded MLflow server, for one machine

mlflow is imported inside functions: it takes seconds, and most commands never need it.
"""
