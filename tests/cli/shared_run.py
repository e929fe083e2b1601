"""Options that make a run of the digits small."""

QUICK = [
    "--model.backbone=test_overlock",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.limit_predict_batches=2",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--data.batch_size=8",
]
